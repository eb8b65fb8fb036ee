"""OmniscientGrid rewrites liars' replies, and nothing else; liars know what was sent."""

import pickle
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from flwr_byzasync import AsyncRobust, ConfigError, Gradient, Query, Quorum, VirtualGrid, client_app
from flwr_byzasync.adversary.omniscient_grid import OmniscientGrid
from flwr_byzasync.aggregators import CoordinateWiseMedian, GeometricMedian, Mean
from flwr_byzasync.attacks import (
    AttackInfo,
    Empire,
    Flood,
    Knowledge,
    LabelFlip,
    Little,
    Needs,
    SignFlip,
    StaleReplay,
)
from flwr_byzasync.estimators import sgd
from flwr_byzasync.optimizers import SGD


@dataclass(frozen=True)
class Spy:
    """Sends zeros, and records what it was passed."""

    INFO: ClassVar[AttackInfo] = AttackInfo("spy", Needs.EVERYTHING, ("here",))
    memory: int = 2
    calls: list[tuple[Tensor, Knowledge]] = field(default_factory=list)

    def craft(self, honest: Tensor, knowledge: Knowledge) -> Tensor:
        self.calls.append((honest, knowledge))
        return torch.zeros_like(honest)


def counting(message: Message, context: Context) -> Message:
    """Reply partition-id + 1 in each coordinate, plus 10 for each earlier reply."""
    past = context.state.metric_records.get("past", MetricRecord({"times": 0}))
    times = int(past["times"])  # type: ignore[arg-type]
    context.state["past"] = MetricRecord({"times": times + 1})
    value = float(context.node_config["partition-id"]) + 1.0 + 10.0 * times
    arrays = ArrayRecord({"x": Array(torch.full((2,), value).numpy())})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord()}), reply_to=message)


def query(node_id: int, payload: str = "momentum", kind: str = "train") -> Message:
    arrays = ArrayRecord({"x": Array(torch.full((2,), 100.0).numpy())})
    config = ConfigRecord({"byz.payload": payload} if payload else {})
    return Message(
        RecordDict({"arrays": arrays, "config": config}), dst_node_id=node_id, message_type=kind
    )


def exchange(grid: Grid, node_id: int, **kwargs: Any) -> Message:
    ids = list(grid.push_messages([query(node_id, **kwargs)]))
    grid.sleep(1.0)  # type: ignore[attr-defined]
    (reply,) = grid.pull_messages(ids)
    return reply


def values(reply: Message) -> list[float]:
    return reply.content.array_records["arrays"]["x"].numpy().tolist()


def test_only_the_liars_replies_are_rewritten() -> None:
    with VirtualGrid(counting, 3) as inner:
        grid = OmniscientGrid(inner, SignFlip(), [inner.node_ids[0]])
        replies = [values(exchange(grid, node_id)) for node_id in inner.node_ids]
    assert replies == [[-1.0, -1.0], [2.0, 2.0], [3.0, 3.0]]


def test_a_liar_knows_the_honest_vectors_their_counts_and_the_rule() -> None:
    spy, rule = Spy(), CoordinateWiseMedian()
    with VirtualGrid(counting, 4) as inner:
        first, second, *honest = inner.node_ids
        grid = OmniscientGrid(inner, spy, [first, second], rule=rule)
        for node_id in (first, honest[0], honest[0], honest[1], second, first):
            exchange(grid, node_id)
    vector, known = spy.calls[0]
    assert vector.tolist() == [1.0, 1.0] and known.rows is None and known.rule is rule
    assert (known.honest_weight, known.byzantine_weight, known.reply) == (0, 1, 0)
    vector, known = spy.calls[2]
    assert vector.tolist() == [11.0, 11.0]
    assert known.rows is not None and known.rows.tolist() == [[13.0, 13.0], [4.0, 4.0]]
    assert known.weights is not None and known.weights.tolist() == [2, 1]
    assert (known.honest_weight, known.byzantine_weight, known.reply) == (3, 3, 1)
    assert [old.tolist() for old in known.history] == [[1.0, 1.0]]
    assert len({known.seed for _, known in spy.calls}) == 2  # one for each liar


def test_colluders_know_only_what_they_themselves_would_send() -> None:
    spy = Spy()
    with VirtualGrid(counting, 4) as inner:
        first, second, *honest = inner.node_ids
        grid = OmniscientGrid(inner, spy, [first, second], knowledge="colluders")
        for node_id in (honest[0], first, second):
            exchange(grid, node_id)
    known = spy.calls[1][1]
    assert known.rows is not None and known.rows.tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert (known.honest_weight, known.byzantine_weight) == (1, 2)


def test_no_more_history_is_kept_than_is_needed() -> None:
    spy = Spy(memory=2)
    with VirtualGrid(counting, 1) as inner:
        grid = OmniscientGrid(inner, spy, inner.node_ids)
        for _ in range(5):
            exchange(grid, inner.node_ids[0])
    assert [old.tolist()[0] for old in spy.calls[4][1].history] == [21.0, 31.0]


@pytest.mark.parametrize("payload", ["model", ""])
def test_of_a_model_the_pseudo_gradient_is_attacked(payload: str) -> None:
    with VirtualGrid(counting, 1) as inner:
        grid = OmniscientGrid(inner, SignFlip(), inner.node_ids)
        # 2 · query − weights
        assert values(exchange(grid, inner.node_ids[0], payload=payload)) == [199.0, 199.0]


def test_evaluations_and_other_messages_pass_unchanged() -> None:
    with VirtualGrid(counting, 1) as inner:
        grid = OmniscientGrid(inner, SignFlip(), inner.node_ids)
        for kind in ("evaluate", "query"):
            assert min(values(exchange(grid, inner.node_ids[0], kind=kind))) > 0


def broken(fault: str) -> Any:
    """Return an array record that cannot be used."""
    whole = Array(torch.full((2,), 1.0).numpy())
    huge = whole.data.replace(b"(2,)", b"(99999999999999,)")
    arrays = {
        "not finite": Array(torch.full((2,), torch.inf).numpy()),
        "another shape": Array(torch.zeros(3).numpy()),
        "another dtype": Array(torch.zeros(2, dtype=torch.float64).numpy()),
        "integers": Array(torch.zeros(2, dtype=torch.int64).numpy()),
        "no data": Array(whole.dtype, whole.shape, whole.stype, b""),
        "half the data": Array(whole.dtype, whole.shape, whole.stype, whole.data[:-3]),
        "a zip": Array(whole.dtype, whole.shape, whole.stype, b"PK\x03\x04"),
        "a huge header": Array(whole.dtype, whole.shape, whole.stype, huge),
    }
    return ArrayRecord({"x": arrays[fault]} if fault in arrays else {})


FAULTS = [
    *("raise", "no record", "nothing", "not finite", "another shape", "another dtype"),
    *("integers", "no data", "half the data", "a zip", "a huge header"),
]


@pytest.mark.parametrize("payload", ["momentum", "model"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_reply_passes_unchanged_and_affects_no_lie(fault: str, payload: str) -> None:
    def app(message: Message, context: Context) -> Message:
        reply = counting(message, context)
        if context.node_config["partition-id"] == 1:
            return reply
        if fault == "raise":
            raise ValueError
        if fault == "no record":
            del reply.content["arrays"]
        else:
            reply.content["arrays"] = broken(fault)
        return reply

    for liars in ([0], [1]):
        spy = Spy()
        with VirtualGrid(app, 2) as inner:
            grid = OmniscientGrid(inner, spy, [inner.node_ids[liar] for liar in liars])
            for _ in range(2):
                exchange(grid, inner.node_ids[0], payload=payload)
                exchange(grid, inner.node_ids[1], payload=payload)
            assert len(spy.calls) == (0 if liars == [0] else 2)
            assert grid.snapshot()[1].counts == {inner.node_ids[1]: 2}


@pytest.mark.parametrize("attack", [Little(), Empire()])
def test_colluders_that_reply_first_need_nobody_else(attack: Any) -> None:
    with VirtualGrid(counting, 2) as inner:
        grid = OmniscientGrid(inner, attack, [inner.node_ids[0]], knowledge="colluders")
        assert all(abs(value) < 2 for value in values(exchange(grid, inner.node_ids[0])))


def test_the_query_that_a_reply_claims_to_answer_is_ignored() -> None:
    def app(message: Message, context: Context) -> Message:
        reply = counting(message, context)
        reply.metadata.__dict__["_reply_to_message_id"] = "m0"
        return reply

    with VirtualGrid(app, 2) as inner:
        grid = OmniscientGrid(inner, SignFlip(), [inner.node_ids[0]])
        replies = grid.send_and_receive([query(node_id) for node_id in inner.node_ids])
        assert [values(reply) for reply in replies] == [[-1.0, -1.0], [2.0, 2.0]]


def test_refused_queries_are_not_waited_for() -> None:
    with VirtualGrid(counting, 1) as inner:
        grid = OmniscientGrid(inner, SignFlip(), inner.node_ids)
        grid.push_messages([query(12345)])
        assert grid.snapshot()[1].unanswered == {}
        assert grid.send_and_receive([query(12345)]) == []


def test_a_timeout_ends_the_waiting() -> None:
    with VirtualGrid(counting, 2) as inner:
        grid = OmniscientGrid(inner, SignFlip(), [])
        assert grid.send_and_receive([query(inner.node_ids[0])], timeout=0.5) == []
        assert inner.clock() == 0.5


def test_the_inner_grids_clock_and_ids_are_passed_on_and_private_things_are_not() -> None:
    with VirtualGrid(counting, 2) as inner:
        grid = OmniscientGrid(inner, SignFlip(), [])
        assert grid.node_ids == inner.node_ids and grid.clock() == inner.clock()
        assert list(grid.get_node_ids()) == list(inner.get_node_ids())
        assert grid.run is inner.run
        with pytest.raises(AttributeError):
            _ = grid._world


def quadratic(query: Query) -> Gradient:
    noise = torch.randn(3, generator=query.generator)
    return Gradient({"x": query.parameters["x"] - 1.0 + 0.1 * noise})


def error_of(attack: Any, rule: Any, liars: int = 4, rounds: int = 30) -> float:
    """Distance to the optimum after training 10 nodes."""
    with VirtualGrid(client_app(quadratic, estimator=sgd()), 10) as inner:
        grid = OmniscientGrid(inner, attack, inner.node_ids[:liars], rule=rule)
        strategy = AsyncRobust(rule, SGD(lr=0.05), quorum=Quorum(10))
        result = strategy.start(grid, ArrayRecord({"x": torch.zeros(3)}), num_rounds=rounds)  # type: ignore[dict-item]
        assert strategy.statistics().rejected == 0
    return float((result.arrays.to_torch_state_dict()["x"] - 1.0).norm())


def test_an_omniscient_attack_ruins_the_mean_and_not_a_robust_rule() -> None:
    attack = Empire(epsilon=2.0)
    assert error_of(attack, Mean()) > 1.0  # never gets anywhere
    assert error_of(attack, CoordinateWiseMedian()) < 0.5
    assert error_of(attack, GeometricMedian()) < 0.5


@pytest.mark.slow
def test_little_biases_a_median_more_the_more_it_deviates() -> None:
    rule = CoordinateWiseMedian()
    assert error_of(Little(z=1.0), rule) > 2 * error_of(Little(z=0.0), rule)


def test_an_attack_that_raises_ends_the_run_with_its_own_exception() -> None:
    """Nothing on a virtual clock is a failing network that might come back."""

    class Broken(Spy):
        def craft(self, honest: Tensor, knowledge: Knowledge) -> Tensor:
            raise ZeroDivisionError("in craft")

    with VirtualGrid(client_app(quadratic, estimator=sgd()), 3) as inner:
        grid = OmniscientGrid(inner, Broken(), [inner.node_ids[0]])
        strategy = AsyncRobust(CoordinateWiseMedian(), SGD(0.1))
        with pytest.raises(ZeroDivisionError, match="in craft"):
            strategy.start(grid, ArrayRecord({"x": torch.ones(3)}))  # type: ignore[dict-item]
        assert inner.clock() < 10.0


def test_send_and_receive_is_rewritten_too() -> None:
    with VirtualGrid(counting, 2) as inner:
        grid = OmniscientGrid(inner, SignFlip(), [inner.node_ids[0]])
        replies = grid.send_and_receive([query(node_id) for node_id in inner.node_ids])
        assert [values(reply) for reply in replies] == [[-1.0, -1.0], [2.0, 2.0]]


@pytest.mark.parametrize("attack", [StaleReplay(age=2), Little()])
def test_a_restored_snapshot_continues_with_the_same_lies(attack: Any) -> None:
    with VirtualGrid(counting, 3) as inner:
        grid = OmniscientGrid(inner, attack, [inner.node_ids[0]])

        def continue_run() -> list[list[float]]:
            return [values(exchange(grid, node_id)) for _ in range(4) for node_id in inner.node_ids]

        continue_run()
        snapshot = pickle.loads(pickle.dumps(grid.snapshot()))
        first = continue_run()
        grid.restore(snapshot)
        assert continue_run() == first


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"attack": LabelFlip()}, "attack"),
        ({"attack": SignFlip}, "attack"),
        ({"attack": Little(z="optimised")}, "rule"),
        ({"attack": Flood(base=Empire(epsilon="optimised"))}, "rule"),
        ({"nodes": ["a"]}, "nodes"),
        ({"nodes": "abc"}, "nodes"),
        ({"sees": "nothing"}, "sees"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], argument: str) -> None:
    grid = VirtualGrid(counting, 1)
    with pytest.raises(ConfigError) as caught:
        OmniscientGrid(grid, **{"attack": SignFlip(), "nodes": [], **settings})
    assert caught.value.argument == argument
