"""No node times out or is given up because the server was busy or away."""

import os
import signal
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord

from apps.train.output import _keep_before
from flwr_byzasync import AsyncRobust, Gradient, Query, VirtualGrid, client_app
from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.core.events import on_clock, on_reply, on_sent
from flwr_byzasync.core.membership import on_connected
from flwr_byzasync.core.state import Update, initial_state
from flwr_byzasync.errors import Reason
from flwr_byzasync.estimators import sgd
from flwr_byzasync.optimizers import SGD
from flwr_byzasync.server.signals import Signals
from flwr_byzasync.simulation.federation import Churn, VirtualNode
from tests.settings import grouped, policy_of

START = ArrayRecord({"x": torch.zeros(2)})  # type: ignore[dict-item]


def towards_one(query: Query) -> Gradient:
    return Gradient({"x": query.parameters["x"] - 1.0})


HONEST = client_app(towards_one, estimator=sgd())


def strategy(**settings: Any) -> AsyncRobust:
    return AsyncRobust(CoordinateWiseMedian(), SGD(lr=0.05), **grouped(**settings))


def test_a_long_evaluation_makes_no_reply_late() -> None:
    with VirtualGrid(HONEST, 4) as grid:
        robust = strategy(departed="drop", updates_per_round=20)

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            until = grid.clock() + 100.0
            while grid.clock() < until:
                grid.sleep(until - grid.clock())
            return MetricRecord({"round": server_round})

        robust.start(grid, START, num_rounds=4, evaluate_fn=evaluate)
        assert robust.statistics().reasons == {}
        assert robust.statistics().accepted == 80


def test_a_quarantined_node_does_not_end_the_run_while_the_others_are_away() -> None:
    def app(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 0:
            raise ValueError
        return HONEST(message, context)

    away = [Churn(50.0, node, "leave") for node in (1, 2, 3)]
    back = [Churn(55.0, node, "join") for node in (1, 2, 3)]
    with VirtualGrid(app, [VirtualNode()] * 4, churn=[*away, *back]) as grid:
        robust = strategy(updates_per_round=50)
        robust.start(grid, START, num_rounds=8)
        assert robust.statistics().accepted == 400


def test_initial_nodes_that_are_all_slow_are_not_all_given_up() -> None:
    one = torch.zeros(1)
    tensors = {"x": one}
    policy = policy_of(departed="drop")
    rule = CoordinateWiseMedian()
    state = initial_state(tensors, (), rule, SGD(lr=1.0), policy, torch.device("cpu"))
    state = on_connected(state, range(5))
    for node in range(5):
        state = on_sent(state, node, f"m{node}", node, 0.0)
    for node in range(3):
        state = on_reply(state, f"m{node}", Update(one, one[:0], one[:0].long()), 1.0)
    state = on_connected(state, [3, 4])  # those that replied leave, and their rows are dropped
    state = on_clock(state, 62.0)
    state = on_reply(state, "m3", Update(one - 1e6, one[:0], one[:0].long()), 63.0)
    assert state.iterates.step == 0 and Reason.NODE_GONE not in state.reasons


def test_a_signal_that_was_never_polled_is_delivered_at_the_end() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with Signals():
            os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_resumed_run_reports_no_round_twice(tmp_path: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"round": {k}}}\n' for k in range(5)) + '{"rou')
    _keep_before(3, path)
    assert path.read_text() == "".join(f'{{"round": {k}}}\n' for k in range(3))
