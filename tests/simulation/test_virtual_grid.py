"""VirtualGrid keeps Flower's contract, and the same seed gives the same bits."""

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync import (
    AsyncRobust,
    ConfigError,
    Gradient,
    Liveness,
    Query,
    Quorum,
    VirtualGrid,
    client_app,
)
from flwr_byzasync._clock import clock_of
from flwr_byzasync.aggregators import CoordinateWiseMedian, Mean
from flwr_byzasync.estimators import mu2, sgd
from flwr_byzasync.optimizers import SGD, AnyTimeSGD
from flwr_byzasync.simulation.arrivals import PaperArrivals
from flwr_byzasync.simulation.federation import Churn, VirtualNode


def counting(message: Message, context: Context) -> Message:
    """Reply how many messages this node has answered, and which node it is."""
    past = context.state.metric_records.get("past", MetricRecord({"times": 0}))
    context.state["past"] = MetricRecord({"times": int(past["times"]) + 1})  # type: ignore[arg-type]
    if message.content.config_records.get("config", {}).get("raise"):
        raise RuntimeError("boom")
    answer = MetricRecord({"times": int(past["times"]) + 1, "node": context.node_id})  # type: ignore[arg-type]
    return Message(RecordDict({"metrics": answer}), reply_to=message)


def query(node_id: int, ttl: float | None = None, **config: Any) -> Message:
    content = RecordDict({"config": ConfigRecord(config)})
    return Message(content, dst_node_id=node_id, message_type="train", ttl=ttl)


def push(grid: VirtualGrid, partition: int, **kwargs: Any) -> str:
    (message_id,) = grid.push_messages([query(grid.node_ids[partition], **kwargs)])
    return message_id


def pull(grid: VirtualGrid, message_id: str) -> Message | None:
    replies = grid.pull_messages([message_id])
    assert len(replies) <= 1
    return replies[0] if replies else None


def times(reply: Message | None) -> int:
    assert reply is not None and reply.has_content()
    return int(reply.content.metric_records["metrics"]["times"])  # type: ignore[arg-type]


def code(reply: Message | None) -> int:
    assert reply is not None and reply.has_error()
    return int(reply.error.code)


def pass_time(grid: VirtualGrid, seconds: float) -> None:
    until = grid.clock() + seconds
    while grid.clock() < until:
        grid.sleep(until - grid.clock())


# --- time -----------------------------------------------------------------------------------


def test_a_reply_takes_its_network_and_compute_times() -> None:
    node = VirtualNode(compute=2.0, network=0.5)
    with VirtualGrid(counting, [node]) as grid:
        message_id = push(grid, 0)
        pass_time(grid, 2.999)
        assert pull(grid, message_id) is None
        pass_time(grid, 0.001)
        assert times(pull(grid, message_id)) == 1


def test_sleep_ends_when_a_reply_arrives_and_lasts_no_longer_than_requested() -> None:
    with VirtualGrid(counting, [VirtualNode(compute=2.0)]) as grid:
        push(grid, 0)
        grid.sleep(0.5)
        assert grid.clock() == 0.5
        grid.sleep(100.0)
        assert grid.clock() == 2.0
        grid.sleep(100.0)
        assert grid.clock() == 102.0


@pytest.mark.parametrize("seed", [0, 7])
def test_times_follow_the_distributions_seeded_by_node_and_message(seed: int) -> None:
    node = VirtualNode(compute=lambda rng: rng.exponential(3.0))
    with VirtualGrid(counting, [node], seed=seed) as grid:
        for number in range(3):
            began = grid.clock()
            message_id = push(grid, 0)
            grid.sleep(1e6)
            rng = np.random.default_rng([seed, 0, number])
            assert grid.clock() - began == pytest.approx(rng.exponential(3.0))
            assert times(pull(grid, message_id)) == number + 1


def test_several_messages_of_a_node_are_computed_in_turn() -> None:
    with VirtualGrid(counting, [VirtualNode(compute=1.0)]) as grid:
        first, second = push(grid, 0), push(grid, 0)
        pass_time(grid, 1.0)
        assert pull(grid, second) is None
        pass_time(grid, 1.0)
        assert (times(pull(grid, second)), times(pull(grid, first))) == (2, 1)


@dataclass(frozen=True)
class Late:
    seconds: float

    def delay(self, rng: np.random.Generator, honest_delay: float) -> float:
        return self.seconds


@pytest.mark.parametrize(("seconds", "arrives"), [(3.0, 5.0), (-2.0, 0.001), (-9.0, 0.001)])
def test_an_attack_on_time_adds_its_delay_but_every_reply_takes_a_millisecond(
    seconds: float, arrives: float
) -> None:
    with VirtualGrid(counting, [VirtualNode(compute=2.0, attack=Late(seconds))]) as grid:
        message_id = push(grid, 0)
        grid.sleep(1e6)
        assert grid.clock() == arrives
        assert times(pull(grid, message_id)) == 1


# --- Flower's contract ----------------------------------------------------------------------


def test_a_reply_comes_once_and_then_its_id_is_unknown() -> None:
    with VirtualGrid(counting, 1) as grid:
        message_id = push(grid, 0)
        pass_time(grid, 1.0)
        assert times(pull(grid, message_id)) == 1
        assert code(pull(grid, message_id)) == 3
        assert code(pull(grid, "never sent")) == 3


def test_an_unknown_nodes_message_is_left_out_of_the_ids() -> None:
    with VirtualGrid(counting, 2) as grid:
        ids = grid.push_messages([query(grid.node_ids[0]), query(12345), query(grid.node_ids[1])])
        assert len(ids) == 2
        pass_time(grid, 1.0)
        nodes = [m.content.metric_records["metrics"]["node"] for m in grid.pull_messages(ids)]
        assert nodes == list(grid.node_ids)


def test_an_app_that_raises_is_an_error_of_code_2_and_its_state_stays() -> None:
    with VirtualGrid(counting, 1) as grid:
        for raises, expected in [(False, 1), (True, None), (False, 2)]:
            message_id = push(grid, 0, **{"raise": raises})
            pass_time(grid, 1.0)
            reply = pull(grid, message_id)
            if expected is None:
                assert code(reply) == 2 and reply is not None
                assert "RuntimeError" in reply.error.reason and "boom" in reply.error.reason
            else:
                assert times(reply) == expected


def test_an_app_that_returns_nonsense_is_an_error_of_code_2() -> None:
    with VirtualGrid(lambda message, context: None, 1) as grid:  # type: ignore[arg-type, return-value]
        message_id = push(grid, 0)
        pass_time(grid, 1.0)
        assert code(pull(grid, message_id)) == 2


class Unprintable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("fault", [SystemExit, Unprintable, "cannot be copied"])
def test_no_exception_of_an_app_leaves_the_grid(fault: Any) -> None:
    def app(message: Message, context: Context) -> Message:
        if fault == "cannot be copied":
            reply = Message(RecordDict(), reply_to=message)
            reply.metadata.__dict__["lock"] = threading.Lock()
            return reply
        raise fault

    with VirtualGrid(app, 1) as grid:
        message_id = push(grid, 0)
        pass_time(grid, 1.0)
        assert code(pull(grid, message_id)) == 2


def test_a_message_that_is_no_query_is_refused_as_in_flower() -> None:
    with VirtualGrid(counting, 1) as grid:
        sent = query(grid.node_ids[0])
        grid.push_messages([sent])
        for wrong in (Message(RecordDict(), reply_to=sent), query(grid.node_ids[0], ttl=-1.0)):
            with pytest.raises(ValueError, match="neither a reply"):
                grid.push_messages([wrong])


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_a_distribution_of_invalid_times_is_named(seconds: float) -> None:
    nodes = [VirtualNode(compute=lambda rng: seconds), VirtualNode(attack=Late(float("nan")))]
    with VirtualGrid(counting, nodes) as grid:
        for node, name in enumerate(("compute", "attack")):
            with pytest.raises(ConfigError, match=name):
                push(grid, node)


def test_an_expired_message_is_an_error_of_code_3_but_its_node_worked() -> None:
    with VirtualGrid(counting, [VirtualNode(compute=5.0)]) as grid:
        message_id = push(grid, 0, ttl=2.0)
        pass_time(grid, 1.9)
        assert pull(grid, message_id) is None
        pass_time(grid, 0.1)
        assert code(pull(grid, message_id)) == 3
        after = push(grid, 0)
        pass_time(grid, 1e3)
        assert times(pull(grid, after)) == 2


def test_a_message_that_expires_before_its_node_is_free_is_never_computed() -> None:
    with VirtualGrid(counting, [VirtualNode(compute=5.0)]) as grid:
        first, second = push(grid, 0), push(grid, 0, ttl=2.0)
        pass_time(grid, 20.0)
        assert code(pull(grid, second)) == 3
        assert times(pull(grid, first)) == 1
        third = push(grid, 0)
        pass_time(grid, 20.0)
        assert times(pull(grid, third)) == 2


def test_send_and_receive_waits_for_all_replies_or_for_the_timeout() -> None:
    nodes = [VirtualNode(compute=1.0), VirtualNode(compute=50.0)]
    with VirtualGrid(counting, nodes) as grid:
        queries = [query(node_id) for node_id in grid.node_ids]
        assert len(grid.send_and_receive(queries, timeout=10.0)) == 1
        assert grid.clock() == 10.0
        queries = [query(node_id) for node_id in grid.node_ids]
        assert len(grid.send_and_receive(queries)) == 2


def test_server_and_app_share_no_objects() -> None:
    kept: list[RecordDict] = []

    def app(message: Message, context: Context) -> Message:
        message.content["config"] = ConfigRecord({"changed": True})
        content = RecordDict({"metrics": MetricRecord({"value": 1})})
        kept.extend([content, context.state])
        return Message(content, reply_to=message)

    with VirtualGrid(app, 1) as grid:
        message = query(grid.node_ids[0], number=1)
        (message_id,) = grid.push_messages([message])
        message.content["config"] = ConfigRecord({"number": 2})
        pass_time(grid, 1.0)
        reply = pull(grid, message_id)
        assert message.content.config_records["config"] == {"number": 2}
        kept[0]["metrics"] = MetricRecord({"value": 2})
        kept[1]["stolen"] = MetricRecord({"value": 2})
        assert reply is not None
        assert reply.content.metric_records["metrics"]["value"] == 1
        assert grid.snapshot().nodes[0].states == {0: RecordDict()}


# --- churn ----------------------------------------------------------------------------------


def test_a_node_that_leaves_is_removed_at_once_and_its_replies_are_errors() -> None:
    with VirtualGrid(counting, [VirtualNode(compute=5.0)] * 2, churn=[Churn(2.0, 0, "leave")]) as g:
        gone, here = push(g, 0), push(g, 1)
        pass_time(g, 1.9)
        assert len(g.get_node_ids()) == 2
        pass_time(g, 0.1)
        assert g.get_node_ids() == [g.node_ids[1]]
        assert code(pull(g, gone)) == 5
        assert code(pull(g, push(g, 0))) == 5
        pass_time(g, 3.0)
        assert times(pull(g, here)) == 1


def test_a_crashed_node_is_removed_when_its_heartbeat_is_missed() -> None:
    churn = [Churn(2.0, 0, "crash")]
    with VirtualGrid(counting, [VirtualNode(compute=5.0)], churn=churn, heartbeat=30.0) as grid:
        message_id = push(grid, 0)
        pass_time(grid, 31.9)
        assert grid.get_node_ids() == [grid.node_ids[0]] and pull(grid, message_id) is None
        pass_time(grid, 0.1)
        assert grid.get_node_ids() == [] and code(pull(grid, message_id)) == 5


def test_a_reply_that_arrived_before_its_node_left_is_delivered() -> None:
    with VirtualGrid(counting, 1, churn=[Churn(2.0, 0, "leave")]) as grid:
        message_id = push(grid, 0)
        pass_time(grid, 3.0)
        assert times(pull(grid, message_id)) == 1


def test_a_node_that_rejoins_has_lost_its_state_and_the_message_it_was_sent() -> None:
    churn = [Churn(3.0, 0, "leave"), Churn(10.0, 0, "join")]
    with VirtualGrid(counting, [VirtualNode(compute=2.0)], churn=churn) as grid:
        first = push(grid, 0)
        pass_time(grid, 2.0)
        assert times(pull(grid, first)) == 1
        lost = push(grid, 0, ttl=100.0)
        pass_time(grid, 4.0)
        waits = push(grid, 0)  # sent while it is away, received when it rejoins
        pass_time(grid, 5.9)
        assert pull(grid, waits) is None
        pass_time(grid, 0.1)
        assert times(pull(grid, waits)) == 1
        pass_time(grid, 50.0)
        assert pull(grid, lost) is None
        pass_time(grid, 40.0)
        assert code(pull(grid, lost)) == 3


def test_a_node_that_crashes_again_is_removed_for_its_second_crash() -> None:
    churn = [Churn(10.0, 0, "crash"), Churn(20.0, 0, "join"), Churn(50.0, 0, "crash")]
    with VirtualGrid(counting, 1, churn=churn, heartbeat=60.0) as grid:
        for until, registered in [(69.0, True), (109.9, True), (110.0, False)]:
            pass_time(grid, until - grid.clock())
            assert bool(grid.get_node_ids()) is registered


def test_simultaneous_churn_events_happen_in_their_order() -> None:
    churn = [Churn(5.0, 0, "leave"), Churn(5.0, 0, "join")]
    with VirtualGrid(counting, 1, churn=churn) as grid:
        assert grid.get_node_ids() == [grid.node_ids[0]]
        pass_time(grid, 5.0)
        assert grid.get_node_ids() == [grid.node_ids[0]]


def test_a_reply_of_an_earlier_incarnation_does_not_change_the_new_state() -> None:
    churn = [Churn(4.0, 0, "leave"), Churn(5.0, 0, "join")]
    with VirtualGrid(counting, 1, churn=churn) as grid:
        first = push(grid, 0)
        pass_time(grid, 1.0)
        assert times(pull(grid, first)) == 1
        second = push(grid, 0)
        pass_time(grid, 5.0)  # it arrived at 2, and is pulled after the node rejoined
        third = push(grid, 0)
        assert times(pull(grid, second)) == 2
        pass_time(grid, 1.0)
        assert times(pull(grid, third)) == 1


def test_a_message_that_expires_before_it_is_fetched_takes_none_of_its_nodes_time() -> None:
    with VirtualGrid(counting, [VirtualNode(compute=5.0)]) as grid:
        push(grid, 0)
        push(grid, 0, ttl=2.0)
        third = push(grid, 0)
        pass_time(grid, 10.0)
        assert times(pull(grid, third)) == 2


def test_a_node_whose_first_churn_event_is_a_join_is_absent_until_then() -> None:
    with VirtualGrid(counting, 2, churn=[Churn(5.0, 1, "join")]) as grid:
        assert grid.get_node_ids() == [grid.node_ids[0]]
        pass_time(grid, 5.0)
        assert grid.get_node_ids() == list(grid.node_ids)


# --- a Flower task --------------------------------------------------------------------------


def test_a_block_cannot_be_entered_twice() -> None:
    with VirtualGrid(counting, 1) as grid:
        with pytest.raises(RuntimeError, match="entered before"):
            grid.__enter__()
        assert grid.get_node_ids() == [grid.node_ids[0]]


def test_outside_its_block_a_grid_says_how_to_use_it() -> None:
    grid = VirtualGrid(counting, 1)
    for call in (grid.get_node_ids, lambda: grid.push_messages([]), lambda: grid.pull_messages([])):
        with pytest.raises(RuntimeError, match="with VirtualGrid"):
            call()


# --- the same bits --------------------------------------------------------------------------


def quadratic(point: Query) -> Gradient:
    """Noisy gradient of ‖x − 1‖²/2."""
    noise = torch.randn(3, generator=point.generator)
    return Gradient({"x": point.parameters["x"] - 1.0 + 0.1 * noise})


def train(
    grid: VirtualGrid, rounds: int = 5, aggregator: Any = None, optimizer: Any = None
) -> tuple[AsyncRobust, bytes]:
    strategy = AsyncRobust(
        aggregator or CoordinateWiseMedian(),
        optimizer or AnyTimeSGD(lr=0.1, gamma=0.3),
        quorum=Quorum(3),
        updates_per_round=20,
        liveness=Liveness(poll_interval=1.0),
    )
    result = strategy.start(grid, ArrayRecord({"x": torch.zeros(3)}), num_rounds=rounds)  # type: ignore[dict-item]
    return strategy, result.arrays["x"].data


UNEVEN = [VirtualNode(compute=lambda rng, k=k: rng.lognormal(0.3 * k, 0.7)) for k in range(4)]


def test_the_strategy_trains_on_the_grids_clock() -> None:
    app = client_app(quadratic, estimator=mu2())
    with VirtualGrid(app, UNEVEN, run_config={"seed": 3}) as grid:
        strategy, data = train(grid, rounds=20)
        assert grid.clock() > 10.0
    x = np.frombuffer(data[-12:], dtype=np.float32)
    assert x == pytest.approx(np.ones(3), abs=0.1)
    counts = list(strategy.statistics().replies.values())
    assert counts[0] > counts[3]  # the fast node answered more often


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    def run(seed: int) -> bytes:
        app = client_app(quadratic, estimator=mu2())
        with VirtualGrid(app, UNEVEN, seed=seed, run_config={"seed": seed}) as grid:
            return train(grid)[1]

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.slow
def test_another_process_with_other_hashes_gives_the_same_bits() -> None:
    script = (
        "from tests.simulation.test_virtual_grid import *\n"
        "app = client_app(quadratic, estimator=mu2())\n"
        "with VirtualGrid(app, UNEVEN, seed=1, run_config={'seed': 1}) as grid:\n"
        "    print(train(grid)[1].hex())\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": hashes, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("1", "2")
    }
    assert len(outputs) == 1 and len(outputs.pop().strip()) > 24


def test_replies_arrive_in_the_order_of_the_process() -> None:
    order: list[int] = []

    def app(message: Message, context: Context) -> Message:
        order.append(int(context.node_config["partition-id"]))
        return client_app(quadratic, estimator=sgd())(message, context)

    process = PaperArrivals(5, 2, 0.4, seed=4)
    with VirtualGrid(app, 5, arrivals=process) as grid:
        train(grid, rounds=3)
        assert grid.clock() == 60.0
    assert tuple(order) == process.order(60)


actions = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 2)),
        st.tuples(st.just("sleep"), st.floats(0.0, 3.0)),
        st.tuples(st.just("pull"), st.integers(0, 12)),
    ),
    max_size=25,
)


def play(grid: VirtualGrid, script: list[tuple[str, Any]]) -> list[object]:
    observed: list[object] = []
    for what, value in script:
        if what == "push":
            observed.append(push(grid, value, ttl=4.0))
        elif what == "sleep":
            grid.sleep(value)
            observed.append((grid.clock(), tuple(grid.get_node_ids())))
        else:
            reply = pull(grid, f"m{value}")
            content = reply is not None and reply.has_content() and reply.content
            observed.append((content, reply is not None and reply.has_error() and reply.error.code))
    return observed


def scripted() -> VirtualGrid:
    nodes = [VirtualNode(compute=lambda rng, k=k: rng.exponential(1.0 + k)) for k in range(3)]
    churn = [Churn(1.0, 2, "join"), Churn(2.0, 1, "crash"), Churn(6.0, 1, "join")]
    return VirtualGrid(counting, nodes, churn=churn, heartbeat=2.0)


@given(actions, actions)
def test_a_restored_snapshot_continues_with_the_same_replies(
    before: list[tuple[str, Any]], after: list[tuple[str, Any]]
) -> None:
    with scripted() as grid:
        play(grid, before)
        snapshot = pickle.loads(pickle.dumps(grid.snapshot()))
        first = play(grid, after)
        grid.restore(snapshot)
        assert play(grid, after) == first
        with scripted() as other:
            other.restore(snapshot)
            assert play(other, after) == first


def test_a_restored_snapshot_continues_with_the_same_arrivals() -> None:
    with VirtualGrid(counting, 5, arrivals=PaperArrivals(5, 2, 0.4, seed=2)) as grid:

        def continue_run() -> list[object]:
            came = []
            for _ in range(10):
                pushed.extend(push(grid, node) for node in range(5))
                grid.sleep(1.0)
                came += [m.content for m in grid.pull_messages(pushed) if m.has_content()]
            return came

        pushed: list[str] = []
        continue_run()
        snapshot, before = grid.snapshot(), list(pushed)
        first = continue_run()
        grid.restore(snapshot)
        pushed = before
        assert continue_run() == first and len(first) == 10


def test_a_snapshot_is_unaffected_by_later_events() -> None:
    with VirtualGrid(counting, 1) as grid:
        push(grid, 0)
        snapshot = grid.snapshot()
        pass_time(grid, 1.0)
        pull(grid, "m0")
        grid.restore(snapshot)
        pass_time(grid, 1.0)
        assert times(pull(grid, "m0")) == 1


def test_a_snapshot_of_another_federation_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 nodes"):
        VirtualGrid(counting, 1).restore(VirtualGrid(counting, 2).snapshot())


# --- other strategies, and failures ---------------------------------------------------------


def test_flowers_own_synchronous_strategies_run_on_a_virtual_grid_too() -> None:
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"].to_torch_state_dict()
        moved = ArrayRecord({k: v + 1.0 for k, v in arrays.items()})  # type: ignore[misc]
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": moved, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "node": context.node_id})  # type: ignore[dict-item]
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    with VirtualGrid(app, 3) as grid:
        strategy = FedAvg(min_available_nodes=3)
        result = strategy.start(grid, ArrayRecord({"x": torch.zeros(2)}), num_rounds=4)  # type: ignore[dict-item]
        assert grid.clock() == 8.0
    assert result.arrays.to_torch_state_dict()["x"].tolist() == [4.0, 4.0]
    evaluated = result.evaluate_metrics_clientapp
    assert [metrics["node"] for metrics in evaluated.values()] == pytest.approx([101.0] * 4)


def test_a_run_survives_nodes_that_crash_leave_and_come_back() -> None:
    churn = [
        Churn(5.0, 0, "crash"),
        Churn(40.0, 0, "join"),
        Churn(8.0, 1, "leave"),
        Churn(20.0, 1, "join"),
    ]
    app = client_app(quadratic, estimator=mu2())
    with VirtualGrid(app, [VirtualNode(compute=1.0)] * 4, churn=churn, heartbeat=30.0) as grid:
        strategy, data = train(grid, rounds=20)
    assert strategy.statistics().accepted == 400
    assert all(count > 50 for count in strategy.statistics().replies.values())
    x = np.frombuffer(data[-12:], dtype=np.float32)
    assert x == pytest.approx(np.ones(3), abs=0.1)


def test_a_liar_on_a_virtual_grid_ruins_the_mean_and_not_the_median() -> None:
    honest = client_app(quadratic, estimator=sgd())

    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if int(context.node_config["partition-id"]) == 0:
            reply.content["arrays"] = ArrayRecord({"x": torch.full((3,), 100.0)})  # type: ignore[dict-item]
        return reply

    found = {}
    for rule in (Mean(), CoordinateWiseMedian()):
        with VirtualGrid(app, 4) as grid:
            data = train(grid, rounds=20, aggregator=rule, optimizer=SGD(lr=0.05))[1]
        found[rule.INFO.name] = np.abs(np.frombuffer(data[-12:], dtype=np.float32) - 1.0).max()
    assert found["cwmed"] < 0.2 < 10.0 < found["mean"]


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: VirtualGrid("app", 1), "app"),
        (lambda: VirtualGrid(counting, 0), "nodes"),
        (lambda: VirtualGrid(counting, []), "nodes"),
        (lambda: VirtualGrid(counting, 1, seed=-1), "seed"),
        (lambda: VirtualGrid(counting, 1, heartbeat=0.0), "heartbeat"),
        (lambda: VirtualGrid(counting, 1, arrivals="paper"), "arrivals"),
        (lambda: VirtualGrid(counting, 3, arrivals=PaperArrivals(4, 1, 0.3)), "arrivals"),
        (
            lambda: VirtualGrid(
                counting, [VirtualNode(attack=Late(1.0))] * 4, arrivals=PaperArrivals(4, 1, 0.3)
            ),
            "attack",
        ),
        (
            lambda: VirtualGrid(
                counting, [VirtualNode(compute=2.0)] * 4, arrivals=PaperArrivals(4, 1, 0.3)
            ),
            "nodes",
        ),
        (lambda: VirtualGrid(counting, 1, churn=[Churn(1.0, 1, "leave")]), "churn"),
        (
            lambda: VirtualGrid(counting, 1, churn=[Churn(1.0, 0, "leave"), Churn(2, 0, "crash")]),
            "churn",
        ),
        (
            lambda: VirtualGrid(counting, 1, churn=[Churn(1.0, 0, "join"), Churn(2.0, 0, "join")]),
            "churn",
        ),
        (lambda: VirtualNode(compute=-1.0), "compute"),
        (lambda: VirtualNode(attack="late"), "attack"),
        (lambda: Churn(-1.0, 0, "join"), "at"),
        (lambda: Churn(1.0, 0, "vanish"), "kind"),
    ],
)
def test_bad_settings_are_refused_by_name(make: Callable[[], object], argument: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.argument == argument


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("call", ["get_node_ids", "push_messages", "pull_messages"])
def test_what_a_grid_of_ones_own_raises_ends_the_run_at_once(call: str, kind: str) -> None:
    """Only a network may come back: an error in a filter of messages would do so for ever."""
    sent: dict[str, str] = {}

    class Filtering(VirtualGrid):
        def get_node_ids(self) -> list[int]:
            fail_if(call == "get_node_ids" and kind in {"train", *sent.values()})
            return super().get_node_ids()

        def push_messages(self, messages: Any) -> list[str]:
            [message] = messages
            [message_id] = super().push_messages([message])
            sent[message_id] = message.metadata.message_type
            fail_if(call == "push_messages" and sent[message_id] == kind)
            return [message_id]

        def pull_messages(self, message_ids: Any) -> list[Message]:
            [message_id] = message_ids
            fail_if(call == "pull_messages" and sent[message_id] == kind)
            return super().pull_messages(message_ids)

    def fail_if(it_should: bool) -> None:
        if it_should:
            raise ZeroDivisionError("in a filter")

    def unchanged(message: Message, context: Context) -> Message:
        return Message(RecordDict({"arrays": message.content["arrays"]}), reply_to=message)

    with Filtering(unchanged, 3) as grid:
        with pytest.raises(ZeroDivisionError, match="in a filter"):
            AsyncRobust().start(grid, ArrayRecord({"x": torch.ones(2)}), 5)  # type: ignore[dict-item]
        assert grid.clock() < 10.0


def test_other_grids_use_this_machines_clock() -> None:
    grid: Any = object()
    assert clock_of(grid) == (time.monotonic, time.sleep)
