"""Signatures that flwr 1.43 changes: `Grid.pull_messages` and `Strategy.start`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result

from flwr_byzasync import AsyncRobust, Checkpoints, ConfigError, VirtualGrid
from flwr_byzasync.adversary import OmniscientGrid
from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.attacks import SignFlip
from flwr_byzasync.optimizers import SGD
from tests.fakes import FakeClock, FakeGrid, FakeNode, reply_to

START = {"w": torch.tensor([4.0, -4.0])}


class RenamedGrid(FakeGrid):
    """A grid with the parameter's next name."""

    def pull_messages(self, msg_ids: Iterable[str]) -> list[Message]:  # type: ignore[override]
        return super().pull_messages(msg_ids)


def strategy_of(**settings: Any) -> AsyncRobust:
    return AsyncRobust(CoordinateWiseMedian(), SGD(0.1), min_available_nodes=3, **settings)


@pytest.mark.parametrize("kind", [FakeGrid, RenamedGrid])
def test_a_run_works_whatever_a_grid_calls_the_ids(kind: type[FakeGrid]) -> None:
    grid = kind(FakeClock(), {node: FakeNode(reply_to) for node in (1, 2, 3)})
    strategy = strategy_of()
    strategy.start(grid, ArrayRecord(START), 4)  # type: ignore[arg-type]
    assert strategy.statistics().accepted == 12


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["message_ids", "msg_ids", None])
def test_our_grids_take_the_ids_by_either_name(name: str | None, wrapped: bool) -> None:
    def app(message: Message, _: object) -> Message:
        return Message(RecordDict(), reply_to=message)

    with VirtualGrid(app, 2) as inner:
        grid = OmniscientGrid(inner, SignFlip(), [inner.node_ids[0]]) if wrapped else inner
        query = Message(RecordDict(), dst_node_id=inner.node_ids[1], message_type="query")
        ids = list(grid.push_messages([query]))
        inner.sleep(2.0)
        replies = grid.pull_messages(ids) if name is None else grid.pull_messages(**{name: ids})
        assert [reply.metadata.reply_to_message_id for reply in replies] == ids
        with pytest.raises(TypeError, match="one argument, the message ids, not 0"):
            grid.pull_messages()
        with pytest.raises(TypeError, match="not 2"):
            grid.pull_messages(ids, msg_ids=ids)


class Stopping:
    """A `should_stop` that ends a run after a round, and records its calls."""

    def __init__(self, after: int) -> None:
        self.after, self.calls = after, list[tuple[int, float]]()

    def __call__(self, server_round: int, result: Result) -> bool:
        loss = result.evaluate_metrics_serverapp[server_round]["loss"]
        self.calls.append((server_round, float(loss)))  # type: ignore[arg-type]
        return server_round == self.after


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    del arrays
    return MetricRecord({"loss": 10.0 - server_round})


def grid_of_three() -> FakeGrid:
    return FakeGrid(FakeClock(), {node: FakeNode(reply_to) for node in (1, 2, 3)})


def test_a_run_ends_after_the_round_at_which_should_stop_is_true() -> None:
    stop, strategy = Stopping(after=3), strategy_of()
    start = ArrayRecord(START)  # type: ignore[arg-type]
    result = strategy.start(grid_of_three(), start, 9, evaluate_fn=evaluate, should_stop=stop)
    assert stop.calls == [(1, 9.0), (2, 8.0), (3, 7.0)]
    assert sorted(result.evaluate_metrics_serverapp) == [0, 1, 2, 3]
    assert strategy.statistics().accepted == 9 and strategy.statistics().stop_reason == ""


def test_should_stop_is_asked_again_when_a_run_resumes(tmp_path: Path) -> None:
    stop, start = Stopping(after=2), ArrayRecord(START)  # type: ignore[arg-type]
    for _ in range(2):
        strategy = strategy_of(checkpoints=Checkpoints(tmp_path, resume=True))
        result = strategy.start(grid_of_three(), start, 9, evaluate_fn=evaluate, should_stop=stop)
        assert sorted(result.evaluate_metrics_serverapp) == [0, 1, 2]
    assert [server_round for server_round, _ in stop.calls] == [1, 2, 2]


def test_a_should_stop_that_is_no_function_is_refused_before_any_message() -> None:
    grid = grid_of_three()
    with pytest.raises(ConfigError, match=r"^should_stop=True is not legal.*a function"):
        strategy_of().start(grid, ArrayRecord(START), should_stop=True)  # type: ignore[arg-type]
    assert grid.sent == []
