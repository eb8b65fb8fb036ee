"""The arrival loop on a fake grid and a fake clock."""

import logging
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from flwr_byzasync import AsyncRobust, ConfigError, Reason
from flwr_byzasync.aggregators import CoordinateWiseMedian, Mean
from flwr_byzasync.optimizers import SGD, AnyTimeSGD
from tests.fakes import Behaviour, FakeClock, FakeGrid, FakeNode, reply_to
from tests.settings import grouped

START = {"w": torch.tensor([4.0, -4.0])}


def honest(message: Message) -> RecordDict:
    """The gradient of ‖x‖²/2 is x: training drives the model to 0."""
    return reply_to(message)


def liar(message: Message) -> RecordDict:
    return reply_to(message, lambda x: -100.0 * torch.ones_like(x))


def broken(message: Message) -> RecordDict:
    return reply_to(message, lambda x: x * torch.nan)


def raising(message: Message) -> Error:
    return Error(2, "Traceback\n<class 'RuntimeError'>: boom")


def silent(message: Message) -> None:
    return None


def strategy_on(clock: FakeClock, **settings: Any) -> AsyncRobust:
    settings = {"aggregator": CoordinateWiseMedian(), "optimizer": SGD(0.1), **settings}
    return AsyncRobust(**grouped(**settings))


def grid_of(clock: FakeClock, *behaviours: Behaviour, seconds: float = 1.0) -> FakeGrid:
    return FakeGrid(clock, {k + 1: FakeNode(b, seconds) for k, b in enumerate(behaviours)})


def final(result: Any) -> torch.Tensor:
    return result.arrays.to_torch_state_dict()["w"]


def test_honest_nodes_train_the_model() -> None:
    clock = FakeClock()
    strategy = strategy_on(clock)
    result = strategy.start(grid_of(clock, honest, honest, honest), ArrayRecord(START), 20)
    assert float(final(result).norm()) < 0.1
    assert strategy.statistics().accepted == 60


def test_a_liar_ruins_the_mean_and_not_the_median() -> None:
    reached = {}
    for rule in (CoordinateWiseMedian(), Mean()):
        clock = FakeClock()
        grid = grid_of(clock, honest, honest, honest, liar, liar)
        result = strategy_on(clock, aggregator=rule).start(grid, ArrayRecord(START), 20)
        reached[type(rule)] = float(final(result).norm())
    assert reached[CoordinateWiseMedian] < 0.5
    assert reached[Mean] > 50


def test_every_node_is_sent_its_next_query_at_once_and_at_the_newest_point() -> None:
    clock = FakeClock()
    grid = FakeGrid(clock, {1: FakeNode(honest, 1.0), 2: FakeNode(honest, 10.0)})
    strategy_on(clock, nodes=1, updates_per_round=12).start(grid, ArrayRecord(START), 1)
    to_fast = [m for m in grid.sent if m.metadata.dst_node_id == 1]
    points = [float(m.content["arrays"].to_torch_state_dict()["w"][0]) for m in to_fast]
    assert len(to_fast) == 12
    assert points == sorted(points, reverse=True) and len(set(points)) == 12
    counts = [m.content["config"]["byz.count"] for m in to_fast]
    assert counts == list(range(12))


def test_queries_have_ids_of_their_own_and_say_what_they_expect() -> None:
    clock = FakeClock()
    grid = grid_of(clock, honest, honest)
    config = ConfigRecord({"lr": 0.5})
    strategy_on(clock).start(grid, ArrayRecord(START), 2, train_config=config)
    configs = [dict(m.content["config"]) for m in grid.sent]
    assert len({c["byz.query"] for c in configs}) == len(configs)
    assert all(c["byz.payload"] == "momentum" and c["lr"] == 0.5 for c in configs)
    assert {c["server-round"] for c in configs} == {1, 2}
    assert dict(config) == {"lr": 0.5}


def test_rounds_are_accepted_replies_and_evaluation_happens_at_their_ends() -> None:
    clock = FakeClock()
    evaluated = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        evaluated.append((server_round, strategy.statistics().accepted))
        return MetricRecord({"norm": float(arrays.to_torch_state_dict()["w"].norm())})

    strategy = strategy_on(clock, updates_per_round=4)
    grid = grid_of(clock, honest, honest, broken)
    result = strategy.start(grid, ArrayRecord(START), 3, evaluate_fn=evaluate)
    assert evaluated == [(0, 0), (1, 4), (2, 8), (3, 12)]
    assert sorted(result.evaluate_metrics_serverapp) == [0, 1, 2, 3]
    assert result.train_metrics_clientapp[3] == {"train_loss": 1.0}
    assert list(result.arrays) == ["w"]


def test_a_liar_s_metrics_do_not_distort_those_of_a_round() -> None:
    clock = FakeClock()

    def boasting(message: Message) -> RecordDict:
        metrics = MetricRecord({"train_loss": 1e200, "num-examples": 10**12, "mine": 5.0})
        return reply_to(message, metrics=metrics)

    strategy = strategy_on(clock)
    result = strategy.start(grid_of(clock, honest, honest, boasting), ArrayRecord(START), 3)
    assert result.train_metrics_clientapp[3] == {"train_loss": 1.0}


def test_staleness_is_the_server_s_own_count_of_steps() -> None:
    clock = FakeClock()
    nodes = {1: FakeNode(honest, 1.0), 2: FakeNode(honest, 4.5)}
    strategy = strategy_on(clock, nodes=1, updates_per_round=5)
    strategy.start(FakeGrid(clock, nodes), ArrayRecord(START), 1)
    # Node 1 replies at 1, 2, 3, 4 with staleness 0; node 2 at 4.5 with staleness 4.
    assert strategy.statistics().mean_staleness == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (broken, Reason.NON_FINITE),
        (raising, Reason.CLIENT_ERROR),
        (lambda m: RecordDict(), Reason.MISSING_RECORD),
        (lambda m: reply_to(m, config=ConfigRecord({"byz.query": -1})), Reason.WRONG_PAYLOAD),
    ],
)
def test_a_faulty_node_is_quarantined_after_five_faults_and_stalls_nobody(
    behaviour: Behaviour, reason: Reason
) -> None:
    clock = FakeClock()
    grid = grid_of(clock, honest, honest, honest, behaviour)
    strategy = strategy_on(clock, updates_per_round=10)
    result = strategy.start(grid, ArrayRecord(START), 20)
    statistics = strategy.statistics()
    assert statistics.accepted == 200 and statistics.replies[4] == 0
    assert statistics.reasons == {reason: 5}
    assert float(final(result).norm()) < 0.1


def test_rejected_replies_leave_the_result_bit_identical() -> None:
    def run(*others: Behaviour) -> torch.Tensor:
        clock = FakeClock()
        grid = grid_of(clock, honest, honest, *others)
        strategy = strategy_on(clock, nodes=2, updates_per_round=20)
        return final(strategy.start(grid, ArrayRecord(START), 3))

    assert torch.equal(run(), run(broken, raising))


def test_a_silent_node_does_not_stall_the_loop_and_is_queried_again() -> None:
    clock = FakeClock()
    grid = grid_of(clock, honest, honest, silent)
    strategy = strategy_on(clock, reply_timeout=5.0, nodes=2, updates_per_round=60)
    strategy.start(grid, ArrayRecord(START), 1)
    assert strategy.statistics().reasons == {Reason.EXPIRED: 3}
    assert sum(m.metadata.dst_node_id == 3 for m in grid.sent) == 3


def test_an_initial_node_that_never_replies_is_not_waited_for_once_it_is_lost() -> None:
    clock = FakeClock()
    strategy = strategy_on(clock, reply_timeout=5.0)
    grid = grid_of(clock, honest, honest, silent)
    result = strategy.start(grid, ArrayRecord(START), 30)
    assert strategy.statistics().steps > 50
    assert float(final(result).norm()) < 0.1


def test_nodes_leave_come_back_and_join_in_the_middle_of_a_run() -> None:
    clock = FakeClock()
    grid = grid_of(clock, honest, honest)
    grid.nodes[3] = FakeNode(honest, connected=False)

    def churn(ids: list[str]) -> None:
        grid.nodes[2].connected = not 5.0 < clock.now < 15.0
        grid.nodes[3].connected = clock.now > 10.0

    grid.on_pull = churn
    strategy = strategy_on(clock, nodes=1, updates_per_round=60)
    strategy.start(grid, ArrayRecord(START), 1)
    replies = strategy.statistics().replies
    assert replies[3] > 5 and replies[1] > replies[2] > 5
    assert strategy.statistics().reasons == {Reason.NODE_GONE: 1}


@pytest.mark.parametrize("call", ["on_pull", "on_push"])
def test_a_network_that_raises_now_and_then_is_survived(call: str) -> None:
    clock, calls = FakeClock(), []

    def sometimes(_: object) -> bool:
        calls.append(1)
        if len(calls) % 3 == 0:
            raise ConnectionError("no route")
        return True

    grid = grid_of(clock, honest, honest, honest)
    setattr(grid, call, sometimes)
    strategy = strategy_on(clock, updates_per_round=10)
    strategy.start(grid, ArrayRecord(START), 3)
    assert strategy.statistics().accepted == 30


def test_a_reply_that_cannot_be_inflated_costs_nobody_else_a_reply() -> None:
    """As Flower's HttpGrid: the pull raises after the SuperLink has deleted what it returned."""
    clock = FakeClock()
    grid = grid_of(clock, *[honest] * 4, liar)
    poisoned: list[str] = []

    def on_pull(ids: list[str]) -> None:
        ready = [key for key in ids if grid.waiting.get(key, (torch.inf,))[0] <= clock.now]
        for key in ready:
            query = next(m for m in grid.sent if m.metadata.message_id == key)
            if query.metadata.dst_node_id == 5 and key not in poisoned:
                poisoned.append(key)
                lost = Message(Error(3, "unavailable"), reply_to=query)
                grid.waiting.update(dict.fromkeys(ready, (0.0, lost)))
                raise ValueError("cannot inflate")

    grid.on_pull = on_pull
    strategy = strategy_on(clock, updates_per_round=40)
    strategy.start(grid, ArrayRecord(START), 5)
    statistics = strategy.statistics()
    assert len(poisoned) > 2 and statistics.reasons == {Reason.LOST: len(poisoned)}
    assert statistics.replies == {1: 50, 2: 50, 3: 50, 4: 50, 5: 0}


def test_a_reply_that_claims_to_answer_another_s_message_stays_its_own() -> None:
    clock = FakeClock()
    grid = grid_of(clock, honest, honest, honest, liar)
    pull = grid.pull_messages

    def forged(ids: list[str]) -> list[Message]:
        victim = next(m for m in reversed(grid.sent) if m.metadata.dst_node_id == 1)
        replies = pull(ids)
        for reply in replies:
            owner = next(m for m in grid.sent if m.metadata.message_id == ids[0])
            if owner.metadata.dst_node_id == 4:
                claimed = victim.metadata.message_id
                reply.metadata.__dict__["_reply_to_message_id"] = claimed
        return replies

    grid.pull_messages = forged  # type: ignore[method-assign]
    strategy = strategy_on(clock, updates_per_round=40)
    result = strategy.start(grid, ArrayRecord(START), 1)
    assert set(strategy.statistics().replies.values()) == {10}
    assert float(final(result).norm()) < float(START["w"].norm())


def test_a_network_that_fails_for_a_while_is_logged_once_and_costs_no_node_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    grid = grid_of(clock, *[honest] * 4)

    def down(_: list[str]) -> None:
        if 3.0 < clock.now < 60.0:
            raise ConnectionError("no route")

    grid.on_pull = down
    strategy = strategy_on(clock, updates_per_round=40)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        strategy.start(grid, ArrayRecord(START), 2)
    assert strategy.statistics().reasons == {}
    assert len(caplog.records) == 1


def test_a_run_whose_queries_are_never_sent_blames_no_node() -> None:
    """Until the last second, when none of them is queried again in time."""
    clock = FakeClock()
    grid = grid_of(clock, honest, honest)
    grid.on_push = lambda message: False
    strategy = strategy_on(clock)
    strategy.start(grid, ArrayRecord(START), timeout=100.0)
    assert strategy.statistics().stop_reason.startswith("the first step was not made within")


@pytest.mark.parametrize("code", [0, 3, 5, 8])
def test_network_faults_never_quarantine_a_node(code: int) -> None:
    clock = FakeClock()
    calls: list[int] = []

    def unlucky(message: Message) -> RecordDict | Error:
        calls.append(1)
        return Error(code, "lost") if len(calls) <= 7 else reply_to(message)

    grid = grid_of(clock, honest, honest, unlucky)
    strategy = strategy_on(clock, updates_per_round=300)
    strategy.start(grid, ArrayRecord(START), 2)
    assert sum(strategy.statistics().reasons.values()) == 7
    assert strategy.statistics().replies[3] > 10


def test_the_first_round_lasts_until_the_first_step() -> None:
    clock = FakeClock()
    grid = FakeGrid(clock, {1: FakeNode(honest, 1.0), 2: FakeNode(honest, 30.0)})
    evaluated: list[int] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        evaluated.append(strategy.statistics().accepted)

    strategy = strategy_on(clock, updates_per_round=10)
    strategy.start(grid, ArrayRecord(START), 3, evaluate_fn=evaluate)
    assert evaluated[0] == 0 and 25 < evaluated[1] <= 31
    assert [b - a for a, b in pairwise(evaluated[1:])] == [10, 10]
    assert strategy.statistics().steps > 15


def test_a_silent_initial_node_is_waited_for_a_minute_at_most() -> None:
    clock = FakeClock()
    grid = grid_of(clock, *[honest] * 4, silent)
    strategy = strategy_on(clock, updates_per_round=20)
    result = strategy.start(grid, ArrayRecord(START), 20)
    assert 60.0 < clock.now < 180.0
    assert float(final(result).norm()) < 0.1


def test_a_quorum_that_is_never_reached_ends_the_run_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    grid = grid_of(clock, honest, honest, silent)
    strategy = strategy_on(clock, nodes=3, updates_per_round=5)
    with caplog.at_level(logging.ERROR, logger="flwr"):
        result = strategy.start(grid, ArrayRecord(START), 20, timeout=100.0)
    assert torch.equal(final(result), START["w"]) and clock.now < 110.0
    assert "the first step was not made within timeout=100 seconds" in caplog.text
    assert "2 have replied, and the first step needs 3" in caplog.text


def test_when_every_node_is_quarantined_from_the_start_the_run_ends_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    with caplog.at_level(logging.ERROR, logger="flwr"):
        strategy_on(clock).start(grid_of(clock, raising, raising), ArrayRecord(START), 5)
    assert clock.now < 60.0
    assert "every connected node is quarantined" in caplog.text


@pytest.mark.parametrize("outage", [1000.0, 1e9], ids=["well again in time", "for ever"])
def test_when_every_node_is_quarantined_later_the_run_waits_for_their_return(
    outage: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that is away for a quarter of an hour must not end a run of a week."""
    clock = FakeClock()

    def failing_for_a_while(message: Message) -> Any:
        return (raising if 50 < clock.now < 50 + outage else honest)(message)

    strategy = strategy_on(clock, updates_per_round=20, poll_interval=1.0)
    grid = grid_of(clock, *[failing_for_a_while] * 3)
    with caplog.at_level(logging.ERROR, logger="flwr"):
        result = strategy.start(grid, ArrayRecord(START), 20)
    if outage < 1e9:
        assert strategy.statistics().accepted == 400 and float(final(result).norm()) < 0.1
        assert clock.now > 1050 and not caplog.text
    else:
        assert "every connected node is quarantined" in caplog.text and clock.now < 4000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_step_that_leaves_the_range_of_numbers_is_taken_back_and_ends_the_run(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    """A rule that bounds nobody: no model of NaN, no checkpoint of one, and no node is blamed."""
    clock, lowest = FakeClock(), torch.finfo(dtype).min

    def huge(message: Message) -> RecordDict:
        return reply_to(message, lambda x: torch.full_like(x, lowest))

    strategy = strategy_on(clock, aggregator=Mean(), optimizer=SGD(4.0), updates_per_round=5)
    start = {"w": START["w"].to(dtype)}
    with caplog.at_level(logging.WARNING, logger="flwr"):
        result = strategy.start(grid_of(clock, honest, honest, huge), ArrayRecord(start), 50)
    assert final(result).isfinite().all() and strategy.statistics().reasons == {}
    first, last = (record.getMessage() for record in caplog.records)
    assert "was undone" in first and "a smaller learning rate" in first
    assert "The run ends in round 1" in last and "left the range" in last


def test_logged_faults_are_forgotten_with_their_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was logged once is remembered, but not for ever-changing ids."""
    monkeypatch.setattr("flwr_byzasync.core.membership.MAX_ABSENT", 3)
    clock, remembered = FakeClock(), []

    class Changing(FakeGrid):
        def get_node_ids(self) -> list[int]:
            stranger = 100 + int(self.clock.now)
            self.nodes.setdefault(stranger, FakeNode(broken, 0.5))
            remembered.append(len(strategy._hooks.endpoint._logged))
            return [1, 2, stranger]

    strategy = strategy_on(clock, nodes=2, updates_per_round=50, poll_interval=0.5)
    nodes = {key: FakeNode(honest) for key in (1, 2)}
    strategy.start(Changing(clock, nodes), ArrayRecord(START), 6)
    known = 3 + 3
    assert len(nodes) - 2 > known * len(Reason) >= max(remembered) > 0


def test_a_node_that_connects_first_does_not_start_alone() -> None:
    clock = FakeClock()
    grid = grid_of(clock, liar, honest, honest)
    for late in (2, 3):
        grid.nodes[late].connected = False
    ids = grid.get_node_ids

    def later() -> list[int]:
        for late in (2, 3):
            grid.nodes[late].connected = clock.now > 30.0
        return ids()

    grid.get_node_ids = later  # type: ignore[method-assign]
    strategy = strategy_on(clock, min_available_nodes=3, updates_per_round=30)
    result = strategy.start(grid, ArrayRecord(START), 1)
    assert set(strategy.statistics().replies.values()) == {10}
    assert float(final(result).norm()) < float(START["w"].norm())


def test_a_model_that_a_wrapper_changed_between_rounds_is_adopted() -> None:
    clock = FakeClock()
    strategy = strategy_on(clock, optimizer=AnyTimeSGD(0.1, gamma=0.5))
    grid = grid_of(clock, honest, honest)
    strategy.configure_train(1, ArrayRecord(START), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, [])
    assert arrays is not None
    strategy.configure_train(2, arrays, ConfigRecord(), grid)
    assert strategy._hooks.endpoint is not None
    before = strategy._hooks.endpoint.state.iterates
    noisy = {"w": before.x + torch.tensor([0.5, 0.25])}
    strategy._hooks.endpoint.state = replace(strategy._hooks.endpoint.state, in_flight={}, nodes={})
    queries = list(strategy.configure_train(3, ArrayRecord(noisy), ConfigRecord(), grid))
    assert queries and all(
        torch.equal(q.content["arrays"].to_torch_state_dict()["w"], noisy["w"])  # type: ignore[union-attr]
        for q in queries
    )
    after = strategy._hooks.endpoint.state.iterates
    assert torch.equal(after.w - before.w, after.x - before.x) and after.step == before.step


@pytest.mark.parametrize("model", [{"v": torch.zeros(2)}, {"w": torch.full((2,), torch.nan)}])
def test_a_model_with_other_names_or_nan_is_not_adopted(model: dict[str, Any]) -> None:
    clock = FakeClock()
    strategy = strategy_on(clock)
    grid = grid_of(clock, honest, honest)
    strategy.configure_train(1, ArrayRecord(START), ConfigRecord(), grid)
    with pytest.raises(ConfigError, match=r"^arrays="):
        strategy.configure_train(2, ArrayRecord(model), ConfigRecord(), grid)


def test_a_query_that_the_network_refuses_is_counted_and_sent_later() -> None:
    clock = FakeClock()
    grid = grid_of(clock, honest, honest)
    grid.on_push = lambda m: m.metadata.dst_node_id != 2 or clock.now > 3.0
    strategy = strategy_on(clock, updates_per_round=10)
    strategy.start(grid, ArrayRecord(START), 1)
    assert strategy.statistics().replies[2] > 0
    assert set(strategy.statistics().reasons) == {Reason.UNSENT}


def test_a_reply_delivered_twice_gains_no_weight() -> None:
    clock = FakeClock()
    grid = grid_of(clock, honest, honest)
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: [m for m in pull(ids) for _ in (1, 2)]  # type: ignore[method-assign]
    strategy = strategy_on(clock, updates_per_round=10)
    strategy.start(grid, ArrayRecord(START), 1)
    statistics = strategy.statistics()
    assert set(statistics.replies.values()) == {5}


def test_when_nothing_more_arrives_the_run_ends_with_what_is_there_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()

    def dies(message: Message) -> RecordDict | None:
        return reply_to(message) if clock.now < 5.0 else None

    grid = grid_of(clock, dies, dies)
    with caplog.at_level(logging.ERROR, logger="flwr"):
        result = strategy_on(clock, updates_per_round=4).start(
            grid, ArrayRecord(START), 10, timeout=50.0
        )
    assert 0.5 < float(final(result).norm()) < float(START["w"].norm())
    assert "no reply was accepted for timeout=50 seconds" in caplog.text


def test_too_few_nodes_end_the_run_in_time_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    grid = grid_of(clock, honest)
    with caplog.at_level(logging.ERROR, logger="flwr"):
        result = strategy_on(clock, nodes=3).start(grid, ArrayRecord(START), timeout=30.0)
    assert torch.equal(final(result), START["w"]) and grid.sent == []
    assert "Only 1 of 3 nodes connected within timeout=30 seconds" in caplog.text
    assert 30.0 <= clock.now < 35.0


def test_each_round_is_one_log_line_and_rejections_do_not_flood_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    grid = grid_of(clock, honest, honest, broken)
    with caplog.at_level(logging.INFO, logger="flwr"):
        strategy_on(clock, nodes=2, updates_per_round=20).start(
            grid, ArrayRecord(START), 2, evaluate_fn=lambda r, a: MetricRecord({"accuracy": 0.5})
        )
    rounds = [r.getMessage() for r in caplog.records if "[ROUND" in r.getMessage()]
    assert len(rounds) == 2
    for part in ("[ROUND 2/2]", "40 replies", "/s)", "accuracy 0.5", "staleness", "left"):
        assert part in rounds[1]
    about_faults = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(about_faults) == 2  # the first NaN, and the quarantine


def test_a_model_with_buffers_keeps_them_apart_and_whole() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    clock = FakeClock()

    def node(message: Message) -> RecordDict:
        moved = {"1.running_mean": torch.full((2,), 3.0), "1.running_var": torch.ones(2)}
        counter = {"1.num_batches_tracked": torch.tensor(7)}
        assert list(message.content["buffers"]) == [*moved, *counter]
        assert "1.running_mean" not in message.content["arrays"]
        return reply_to(message, buffers=ArrayRecord({**moved, **counter}))

    strategy = strategy_on(clock, buffers=[name for name, _ in model.named_buffers()])
    result = strategy.start(grid_of(clock, node, node, node), ArrayRecord(model.state_dict()), 2)
    arrays = result.arrays.to_torch_state_dict()
    assert list(arrays) == list(model.state_dict())
    assert arrays["1.running_mean"].tolist() == [3.0, 3.0]
    assert arrays["1.num_batches_tracked"] == 7
    model.load_state_dict(arrays)


@pytest.mark.parametrize("named", [None, [], ["ema"], ["ema", "1.running_mean"]])
def test_buffers_that_are_named_do_not_switch_off_the_detection_of_batch_norms(
    named: list[str] | None,
) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model.register_buffer("ema", torch.ones(2))
    held = {"ema"} if named else set[str]()

    def node(message: Message) -> RecordDict:
        buffers = dict(message.content["buffers"].to_torch_state_dict())  # type: ignore[union-attr]
        assert buffers.keys() - {"1.num_batches_tracked"} == {
            "1.running_mean", "1.running_var", *held
        }  # fmt: skip
        changes = {"1.running_var": torch.full((2,), 0.25), "ema": torch.full((2,), 5.0)}
        sent = {name: changes.get(name, value) for name, value in buffers.items()}
        return reply_to(message, buffers=ArrayRecord(sent))

    strategy = strategy_on(clock := FakeClock(), buffers=named)
    result = strategy.start(grid_of(clock, node, node, node), ArrayRecord(model.state_dict()), 2)
    arrays = result.arrays.to_torch_state_dict()
    assert strategy.statistics().accepted == 6 and arrays["1.running_var"].tolist() == [0.25, 0.25]
    assert (arrays["ema"].tolist() == [5.0, 5.0]) == bool(named)


def test_record_keys_follow_the_user_s() -> None:
    clock = FakeClock()

    def node(message: Message) -> RecordDict:
        assert set(message.content) == {"model", "settings"}
        config = message.content["settings"]
        echo = ConfigRecord({k: config[k] for k in ("byz.query", "byz.payload")})
        return RecordDict({"model": message.content["model"], "settings": echo})

    strategy = strategy_on(clock, arrayrecord_key="model", configrecord_key="settings")
    strategy.start(grid_of(clock, node, node), ArrayRecord(START), 2)
    assert strategy.statistics().accepted == 4


def test_the_same_arrivals_give_the_same_bits() -> None:
    def run() -> torch.Tensor:
        clock = FakeClock()
        grid = FakeGrid(clock, {k: FakeNode(honest, 1.0 + k / 7) for k in range(1, 5)})
        strategy = strategy_on(clock, optimizer=AnyTimeSGD(0.1), updates_per_round=30)
        return final(strategy.start(grid, ArrayRecord(START), 2))

    assert torch.equal(run(), run())


def test_flower_s_synchronous_loop_drives_the_same_state_through_the_round_hooks() -> None:
    clock = FakeClock()
    strategy = strategy_on(clock)
    grid = grid_of(clock, honest, honest, honest, broken)
    result = Strategy.start(strategy, grid, ArrayRecord(START), num_rounds=30, timeout=10.0)
    assert float(final(result).norm()) < 0.1
    statistics = strategy.statistics()
    assert statistics.replies == {1: 30, 2: 30, 3: 30, 4: 0}
    assert statistics.reasons == {Reason.NON_FINITE: 5}


def test_a_second_run_of_the_same_strategy_starts_afresh() -> None:
    clock = FakeClock()
    strategy = strategy_on(clock)
    for start in (AsyncRobust.start, Strategy.start, Strategy.start):
        start(strategy, grid_of(clock, honest, honest), ArrayRecord(START), 3, timeout=10.0)
        assert strategy.statistics().accepted == 6


def test_the_model_of_an_unfinished_round_is_not_discarded() -> None:
    clock = FakeClock()
    grid = grid_of(clock, lambda m: honest(m) if clock.now < 8.0 else None)
    strategy = strategy_on(clock, nodes=1, updates_per_round=100)
    result = strategy.start(grid, ArrayRecord(START), 2, timeout=20.0)
    assert float(final(result).norm()) < 0.6 * float(START["w"].norm())


def test_statistics_are_empty_before_a_run() -> None:
    assert strategy_on(FakeClock()).statistics().accepted == 0


def test_shares_of_the_weight_are_those_of_the_counts() -> None:
    clock = FakeClock()
    nodes = {1: FakeNode(honest, 1.0), 2: FakeNode(honest, 3.0)}
    strategy = strategy_on(clock, nodes=1, updates_per_round=4)
    strategy.start(FakeGrid(clock, nodes), ArrayRecord(START), 2)
    assert strategy.statistics().share({1}) == 6 / 8


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("aggregator", "ctma(gm)"), ("aggregator", CoordinateWiseMedian), ("optimizer", 0.1),
        ("optimizer", SGD), ("nodes", 0), ("nodes", 2.5), ("updates_per_round", -1),
        ("payload", "weights"), ("max_consecutive_faults", 0), ("reply_timeout", 0.0),
        ("reply_timeout", float("nan")), ("poll_interval", -1.0), ("device", "gpu"),
        ("arrayrecord_key", ""), ("arrayrecord_key", "buffers"), ("configrecord_key", 3),
        ("configrecord_key", "arrays"), ("buffers", 5), ("buffers", "mean"), ("device", "meta"),
        ("device", "cuda:99"), ("min_available_nodes", 0),
    ],
)  # fmt: skip
def test_an_argument_out_of_range_is_refused_by_name(argument: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{argument}=.* is not legal: it must be .*; .*\\.$"):
        strategy_on(FakeClock(), **{argument: value})


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"num_rounds": 0}, "num_rounds"),
        ({"timeout": -1.0}, "timeout"),
        ({"initial_arrays": ArrayRecord()}, "initial_arrays"),
        ({"initial_arrays": ArrayRecord({"n": torch.tensor([1])})}, "initial_arrays"),
        ({"initial_arrays": START}, "initial_arrays"),
        ({"train_config": {"lr": 0.1}}, "train_config"),
    ],
)
def test_a_start_that_cannot_work_is_refused_before_any_message(
    arguments: dict[str, Any], name: str
) -> None:
    clock = FakeClock()
    grid = grid_of(clock, honest)
    with pytest.raises(ConfigError, match=f"^{name}="):
        strategy_on(clock).start(grid, **{"initial_arrays": ArrayRecord(START), **arguments})
    assert grid.sent == []


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        AsyncRobust(CoordinateWiseMedian(), SGD(0.1), device="cuda")
    else:
        with pytest.raises(ConfigError, match=r"^device='cuda'.*torch\.cuda\.is_available"):
            AsyncRobust(CoordinateWiseMedian(), SGD(0.1), device="cuda")


def test_training_on_cuda_agrees_with_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")

    def run(device: str) -> torch.Tensor:
        clock = FakeClock()
        strategy = strategy_on(clock, device=device)
        return final(strategy.start(grid_of(clock, honest, honest), ArrayRecord(START), 10))

    torch.testing.assert_close(run("cuda"), run("cpu"))
