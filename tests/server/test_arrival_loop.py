"""When the arrival loop gives up, and what it logs then."""

import logging
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord

from flwr_byzasync import AsyncRobust, Liveness
from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.checkpoints.files import Checkpoints
from flwr_byzasync.optimizers import SGD
from tests.fakes import FakeClock, FakeGrid, FakeNode, reply_to
from tests.settings import grouped

START = {"w": torch.tensor([4.0, -4.0])}


def grid_of_three() -> FakeGrid:
    return FakeGrid(FakeClock(), {node: FakeNode(reply_to) for node in (1, 2, 3)})


def strategy_on(grid: FakeGrid, **settings: Any) -> AsyncRobust:
    del grid
    rule = CoordinateWiseMedian()
    return AsyncRobust(rule, SGD(0.1), **grouped(nodes=3, **settings))


def test_nodes_have_the_whole_timeout_to_connect_despite_a_long_first_evaluation() -> None:
    grid = grid_of_three()
    for node in grid.nodes.values():
        node.connected = False

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round == 0:
            grid.clock.now += 100.0
        return MetricRecord({"round": server_round})

    node_ids = grid.get_node_ids

    def connect() -> list[int]:
        for node in grid.nodes.values():
            node.connected = grid.clock.now > 120.0
        return node_ids()

    grid.get_node_ids = connect  # type: ignore[method-assign]
    strategy = strategy_on(grid)
    strategy.start(grid, ArrayRecord(START), 2, timeout=60.0, evaluate_fn=evaluate)
    assert strategy.statistics().accepted == 6


@pytest.mark.parametrize("noticed", [True, False])
def test_who_stood_still_with_everybody_else_is_not_late(
    noticed: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is suspended for two hours: server, nodes and messages alike."""
    if not noticed:
        monkeypatch.setattr("flwr_byzasync.server.arrival_loop.CLOCK_JUMP_SECONDS", float("inf"))
    grid, slept = grid_of_three(), []

    def sleep(seconds: float) -> None:
        grid.clock.sleep(seconds)
        if grid.clock.now > 20.0 and not slept:
            slept.append(grid.clock.now)
            grid.clock.now += 7200.0
            grid.waiting = {key: (at + 7200.0, m) for key, (at, m) in grid.waiting.items()}

    grid.sleep = sleep  # type: ignore[method-assign]
    strategy = strategy_on(grid)
    with caplog.at_level(logging.WARNING, "flwr"):
        strategy.start(grid, ArrayRecord(START), 20)
    statistics = strategy.statistics()
    if noticed:
        assert statistics.accepted == 60 and statistics.reasons == {} and not statistics.stop_reason
        assert "The run was suspended for 7200 seconds" in caplog.text
    else:
        assert statistics.accepted < 60 and "no reply was accepted" in statistics.stop_reason


def test_a_signal_is_handled_soon_however_long_the_poll_interval_is(tmp_path: Path) -> None:
    grid, raised = grid_of_three(), []

    def sleep(seconds: float) -> None:
        grid.clock.sleep(seconds)
        if grid.clock.now > 35.0 and not raised:
            raised.append(grid.clock.now)
            signal.raise_signal(signal.SIGINT)

    strategy = AsyncRobust(
        CoordinateWiseMedian(),
        SGD(0.1),
        liveness=Liveness(poll_interval=300.0),
        checkpoints=Checkpoints(tmp_path),
    )
    grid.sleep = sleep  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        strategy.start(grid, ArrayRecord(START), 20)
    assert raised[0] <= grid.clock.now <= raised[0] + 1.0 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("on_loss", ["wait", "continue"])
def test_a_run_that_ends_in_a_pause_logs_that_it_waited_for_more_nodes(
    on_loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    grid = grid_of_three()

    def leave(ids: list[str]) -> None:
        if grid.clock.now > 10.0:
            staying = {1} if on_loss == "wait" else set()
            for node_id, node in grid.nodes.items():
                node.connected = node_id in staying

    grid.on_pull = leave
    with caplog.at_level(logging.ERROR, "flwr"):
        strategy = strategy_on(grid, on_loss=on_loss)
        strategy.start(grid, ArrayRecord(START), 100, timeout=30.0)
    [message] = caplog.messages
    assert "no reply was accepted for timeout=30 seconds" in message
    assert ("on_loss='wait' waits for more nodes" in message) == (on_loss == "wait")
