"""Nodes evaluate models while all of them keep training."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import Result, Strategy
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync import AsyncRobust, Liveness, Models, Quorum, VirtualGrid
from flwr_byzasync.checkpoints.files import Checkpoints
from flwr_byzasync.server.evaluation import EvaluationSettings
from flwr_byzasync.server.metrics_aggregation import aggregate_metrics, mean_metrics
from flwr_byzasync.simulation.federation import Churn, VirtualNode
from flwr_byzasync.wire.keys import MessageFormat
from tests.fakes import FakeClock, FakeGrid, FakeNode
from tests.wire.zoo import USABLE, ZOO

START = {"w": torch.tensor([4.0, -4.0])}
FIRST = 100
"""Node id of partition 0."""
Evaluate = Callable[[Message, int], RecordDict | Error | None]


def norm_of(message: Message) -> float:
    arrays = message.content.array_records["arrays"].to_torch_state_dict()
    return float(arrays["w"].norm())


def reported(**metrics: Any) -> RecordDict:
    return RecordDict({"metrics": MetricRecord(metrics)})


def app_of(evaluate: Evaluate | None = None) -> Callable[[Message, Context], Message]:
    """Return a ClientApp that halves the model, and reports `evaluate` or else its norm."""

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type == MessageType.EVALUATE:
            made = reported(norm=norm_of(message)) if evaluate is None else None
            if evaluate is not None:
                made = evaluate(message, context.node_id - FIRST)  # type: ignore[assignment]
            return Message(made, reply_to=message)
        arrays = message.content.array_records["arrays"].to_torch_state_dict()
        arrays["w"] *= 0.5
        return Message(RecordDict({"arrays": ArrayRecord(arrays)}), reply_to=message)

    return app


class TimedGrid(VirtualGrid):
    """A grid whose nodes compute as long as a function of message type and partition says."""

    def __init__(
        self, app: Any, nodes: int, seconds: Callable[[str, int], float], **more: Any
    ) -> None:
        self._seconds, self._next = seconds, 1.0
        node = VirtualNode(compute=lambda rng: self._next)
        super().__init__(app, [node] * nodes, **more)

    def push_messages(self, messages: Any) -> list[str]:
        pushed: list[str] = []
        for message in messages:
            metadata = message.metadata
            self._next = self._seconds(metadata.message_type, metadata.dst_node_id - FIRST)
            pushed += super().push_messages([message])
        return pushed


def run(
    evaluate: Evaluate | None = None,
    nodes: int = 5,
    rounds: int = 4,
    start: Callable[..., Result] = AsyncRobust.start,
    seconds: Callable[[str, int], float] = lambda kind, node: 1.0,
    churn: Sequence[Churn] = (),
    **settings: Any,
) -> tuple[Result, AsyncRobust, float]:
    strategy = AsyncRobust(**settings)
    with TimedGrid(app_of(evaluate), nodes, seconds, churn=churn) as grid:
        result = start(strategy, grid, ArrayRecord(START), rounds)  # type: ignore[arg-type]
        return result, strategy, grid.clock()


# --- who is asked, and what -----------------------------------------------------------------------


@given(
    st.floats(0.0, 1.0),
    st.integers(0, 6),
    st.lists(st.integers(1, 100), max_size=12, unique=True),
    st.integers(1, 50),
    st.data(),
)
def test_as_many_connected_nodes_are_asked_as_fedavg_would_ask(
    message: Message,
    fraction: float,
    min_nodes: int,
    connected: list[int],
    server_round: int,
    data: st.DataObject,
) -> None:
    busy = data.draw(st.sets(st.sampled_from(connected))) if connected else set()
    settings, config = EvaluationSettings(fraction, min_nodes), ConfigRecord({"batch": 8})

    def requests_to(busy: set[int]) -> list[Message]:
        record = ArrayRecord({"w": torch.ones(2)})  # type: ignore[dict-item]
        message_format = MessageFormat("model", "model", "settings")
        return settings.requests(server_round, record, config, connected, message_format, busy)

    requests = requests_to(set())
    ids = [request.metadata.dst_node_id for request in requests]
    target = max(int(fraction * len(connected)), min_nodes)
    possible = fraction > 0 and target <= len(connected)
    assert len(ids) == (target if possible else 0)
    assert len(set(ids)) == len(ids) and set(ids) <= set(connected)
    # Drawn from the round alone, so that a resumed run asks the same; busy nodes are skipped.
    remaining = [request.metadata.dst_node_id for request in requests_to(busy)]
    assert remaining == [node_id for node_id in ids if node_id not in busy]
    for request in requests:
        assert request.metadata.message_type == MessageType.EVALUATE
        assert dict(request.content["settings"]) == {"batch": 8, "server-round": server_round}
        assert list(request.content["model"]) == ["w"]
    assert dict(config) == {"batch": 8}


@pytest.mark.parametrize(("fraction", "min_nodes", "each"), [(1.0, 2, 5), (0.4, 1, 2), (0.1, 3, 3)])
def test_the_nodes_of_a_round_are_sent_that_round_s_model(
    fraction: float, min_nodes: int, each: int
) -> None:
    evaluated: list[tuple[int, int, float]] = []
    ended: dict[int, float] = {}

    def evaluate(message: Message, node: int) -> RecordDict:
        config = message.content["config"]
        assert config["batch"] == 8
        evaluated.append((config["server-round"], node, norm_of(message)))  # type: ignore[arg-type]
        return reported(norm=norm_of(message))

    def on_round_end(server_round: int, arrays: ArrayRecord, _: object) -> None:
        ended[server_round] = float(arrays.to_torch_state_dict()["w"].norm())

    strategy = AsyncRobust(
        fraction_evaluate=fraction, min_evaluate_nodes=min_nodes, callbacks=[on_round_end]
    )
    with VirtualGrid(app_of(evaluate), 5) as grid:
        config = ConfigRecord({"batch": 8})
        result = strategy.start(grid, ArrayRecord(START), 4, evaluate_config=config)  # type: ignore[arg-type]
    rounds = Counter(server_round for server_round, _, _ in evaluated)
    assert rounds == dict.fromkeys((1, 2, 3, 4), each)
    assert len({(server_round, node) for server_round, node, _ in evaluated}) == 4 * each
    assert all(norm == ended[server_round] for server_round, _, norm in evaluated)
    metrics = result.evaluate_metrics_clientapp
    assert {key: record["norm"] for key, record in metrics.items()} == ended
    assert len(set(ended.values())) == 4


def test_without_models_as_replies_nobody_evaluates_unless_requested() -> None:
    from flwr_byzasync.optimizers import SGD

    assert AsyncRobust().settings.evaluation.fraction == 1.0
    assert AsyncRobust(payload=Models(), optimizer=SGD(0.1)).settings.evaluation.fraction == 1.0
    assert AsyncRobust(optimizer=SGD(0.1)).settings.evaluation.fraction == 0.0
    assert (
        AsyncRobust(optimizer=SGD(0.1), fraction_evaluate=0.5).settings.evaluation.fraction == 0.5
    )


# --- slow, gone, silent ---------------------------------------------------------------------------


def test_slow_evaluators_delay_no_other_node_and_no_round() -> None:
    def seconds(kind: str, node: int) -> float:
        if kind == MessageType.EVALUATE:
            return 30.0 if node == 0 else 0.0
        return 1.0

    settings = {"updates_per_round": 20, "quorum": Quorum(4), "rounds": 10, "seconds": seconds}
    _, without, alone = run(fraction_evaluate=0.0, **settings)
    result, strategy, clock = run(**settings)
    replies = strategy.statistics().replies
    assert without.statistics().accepted == strategy.statistics().accepted == 200
    # Node 0 evaluates most of the time; the other four reply once a second as before.
    assert replies[FIRST] < 20 and min(list(replies.values())[1:]) >= 45
    assert alone == pytest.approx(40.0, abs=1.0)
    # 200 replies of four nodes take 50 s; the end waits for node 0, which owes two at most.
    assert 50.0 <= clock < 50.0 + 3 * 31.0
    assert list(result.evaluate_metrics_clientapp) == list(range(1, 11))


def test_metrics_are_in_the_order_of_rounds_however_late_they_arrive() -> None:
    """Node 0 takes 7 s to evaluate, so that the rounds for which it is not asked end first."""

    def seconds(kind: str, node: int) -> float:
        if kind == MessageType.EVALUATE:
            return 7.0 if node == 0 else 0.0
        return 1.0

    ended: list[float] = []

    def on_round_end(server_round: int, arrays: ArrayRecord, _: object) -> None:
        ended.append(float(arrays.to_torch_state_dict()["w"].norm()))

    result, _, _ = run(
        seconds=seconds, rounds=30, updates_per_round=4, quorum=Quorum(4), callbacks=[on_round_end]
    )
    assert list(result.evaluate_metrics_clientapp) == list(range(1, 31))
    assert [record["norm"] for record in result.evaluate_metrics_clientapp.values()] == ended


def test_a_node_that_leaves_is_not_waited_for() -> None:
    def seconds(kind: str, node: int) -> float:
        return 1e5 if kind == MessageType.EVALUATE and node == 0 else 1.0

    churn = [Churn(40.5, 0, "leave")]
    result, _, clock = run(seconds=seconds, churn=churn, rounds=2, quorum=Quorum(3))
    assert sorted(result.evaluate_metrics_clientapp) == [1, 2]
    assert 40.5 <= clock < 42.0


def test_a_node_that_never_answers_is_waited_for_until_the_limit() -> None:
    def seconds(kind: str, node: int) -> float:
        return 1e5 if kind == MessageType.EVALUATE and node == 0 else 1.0

    result, _, clock = run(
        seconds=seconds, rounds=2, quorum=Quorum(3), liveness=Liveness(90.0, 1.0)
    )
    assert sorted(result.evaluate_metrics_clientapp) == [1, 2]
    assert 91.0 <= clock < 95.0


def test_a_network_that_fails_costs_answers_and_nothing_else() -> None:
    clock, calls = FakeClock(), [0]
    app = app_of()

    def node(message: Message) -> RecordDict:
        context = Context(1, FIRST, {}, RecordDict(), {})
        return app(message, context).content

    def failing(message: Message) -> bool:
        if message.metadata.message_type == MessageType.EVALUATE:
            calls[0] += 1
            if calls[0] % 3 == 0:
                raise ConnectionError("no route")
        return calls[0] % 3 != 1 or message.metadata.message_type == MessageType.TRAIN

    grid = FakeGrid(clock, {k: FakeNode(node) for k in range(5)}, on_push=failing)
    strategy = AsyncRobust()
    result = strategy.start(grid, ArrayRecord(START), 6)
    assert strategy.statistics().accepted == 30 and strategy.statistics().reasons == {}
    assert list(result.evaluate_metrics_clientapp) == [1, 2, 3, 4, 5, 6]


# --- liars ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [AsyncRobust.start, Strategy.start])
@pytest.mark.parametrize("lie", [{"norm": 1e200}, {"norm": -1e6, "num-examples": 10**12}, {}])
def test_one_liar_moves_a_mean_anywhere_and_the_median_nowhere(
    lie: dict[str, Any], start: Callable[..., Result]
) -> None:
    def evaluate(message: Message, node: int) -> RecordDict:
        if node == 0:
            return reported(**lie, mine=7.0)
        return reported(norm=norm_of(message), **{"num-examples": 10, "top": [1.0, float(node)]})

    result, _, _ = run(evaluate, start=start)
    honest, _, _ = run(lambda message, node: reported(norm=norm_of(message)), start=start)
    expected = {k: v["norm"] for k, v in honest.evaluate_metrics_clientapp.items()}
    metrics = result.evaluate_metrics_clientapp
    assert {k: v["norm"] for k, v in metrics.items()} == expected and list(expected) == [1, 2, 3, 4]
    assert all(set(record) == {"norm", "top"} for record in metrics.values())
    assert metrics[1]["top"] == [1.0, 2.5]
    means, _, _ = run(evaluate, start=start, evaluate_metrics_aggr_fn=mean_metrics)
    moved = means.evaluate_metrics_clientapp[4]
    assert moved["mine"] == 7.0
    assert (abs(moved["norm"]) > 1e4) == bool(lie)  # type: ignore[arg-type]


@pytest.mark.slow
def test_liars_cannot_end_the_evaluation_of_the_others() -> None:
    """Nodes 0 to 3 raise: whichever are drawn first, the sixteen others are asked later."""
    evaluations: Counter[int] = Counter()

    def evaluate(message: Message, node: int) -> RecordDict:
        evaluations[node] += 1
        if node < 4:
            raise RuntimeError("no")
        return reported(norm=1.0)

    result, _, _ = run(evaluate, nodes=20, rounds=60, fraction_evaluate=0.1)
    assert all(evaluations[node] == 1 for node in range(4))
    assert min(evaluations[node] for node in range(4, 20)) > 1
    assert len(result.evaluate_metrics_clientapp) >= 58


def test_a_node_that_has_evaluated_before_is_asked_again_after_a_fault() -> None:
    evaluations: Counter[int] = Counter()

    def evaluate(message: Message, node: int) -> RecordDict:
        evaluations[node] += 1
        if message.content["config"]["server-round"] == 2:
            raise RuntimeError("out of memory")
        return reported(norm=1.0)

    result, _, _ = run(evaluate)
    assert evaluations == dict.fromkeys(range(5), 4)
    assert list(result.evaluate_metrics_clientapp) == [1, 3, 4]


HOSTILE: dict[str, Callable[[], Any]] = {
    **{name: make for name, (make, _) in ZOO.items() if name != "no content"},
    **USABLE,
    "no metrics at all": RecordDict,
    "an empty record": lambda: reported(),
    "text": lambda: RecordDict({"metrics": ConfigRecord({"norm": "much"})}),
    "of other kinds": lambda: reported(norm=[1.0], top=3),
    "not finite": lambda: reported(norm=float("nan"), top=[float("inf")]),
    "two records": lambda: RecordDict({"a": MetricRecord({"norm": 9.0}), "b": MetricRecord()}),
    "a number too large": lambda: reported(norm=10**400),
}


@pytest.mark.parametrize("function", [None, mean_metrics, aggregate_metricrecords])
def test_no_answer_to_an_evaluation_can_raise_or_move_the_median(function: Any) -> None:
    """Flower's own mean is one that a malformed answer breaks: the run continues."""
    # Usable at first, or the node would not be asked again.
    chosen = ["good", *list(HOSTILE)[::4]]  # the hooks process every one, below
    kinds = iter(chosen)
    app = app_of()

    def node(message: Message) -> RecordDict:
        content = app(message, Context(1, FIRST, {}, RecordDict(), {})).content
        if message.metadata.message_type == MessageType.EVALUATE:
            content["metrics"]["num-examples"] = 4  # type: ignore[index]
        return content

    def hostile(message: Message) -> Any:
        evaluates = message.metadata.message_type == MessageType.EVALUATE
        return HOSTILE[next(kinds)]() if evaluates else node(message)

    def run_with(behave: Any) -> dict[int, MetricRecord]:
        clock = FakeClock()
        nodes = {k: FakeNode(behave if k == 2 else node) for k in range(5)}
        strategy = AsyncRobust(
            liveness=Liveness(poll_interval=0.5), evaluate_metrics_aggr_fn=function
        )
        rounds = len(chosen)
        result = strategy.start(FakeGrid(clock, nodes), ArrayRecord(START), rounds)
        assert strategy.statistics().accepted == 5 * rounds
        return result.evaluate_metrics_clientapp

    expected, reached = run_with(node), run_with(hostile)
    assert next(kinds, None) is None and len(expected) == len(chosen)
    if function is None:
        assert reached == expected
    else:
        assert reached.keys() <= expected.keys() and reached != expected


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metrics_are_aggregated_by_the_hooks_as_well(name: str, message: Message) -> None:
    strategy = AsyncRobust()
    replies = [Message(reported(norm=float(k)), reply_to=message) for k in (1, 2, 3)]
    made = HOSTILE[name]()
    result = strategy.aggregate_evaluate(1, [*replies, Message(made, reply_to=message)])
    assert result is not None and 1.0 <= result["norm"] <= 3.0  # type: ignore[operator]


# --- user-defined functions -----------------------------------------------------------------------


@pytest.mark.parametrize("start", [AsyncRobust.start, Strategy.start])
def test_the_user_s_function_is_passed_what_fedavg_would_pass(
    start: Callable[..., Result],
) -> None:
    def evaluate(message: Message, node: int) -> RecordDict:
        return reported(norm=float(node), **{"num-examples": 1 if node else 6})

    result, _, _ = run(evaluate, start=start, evaluate_metrics_aggr_fn=aggregate_metricrecords)
    # (6·0 + 1 + 2 + 3 + 4) / 10: whoever uses it trusts the reported example counts.
    assert [v["norm"] for v in result.evaluate_metrics_clientapp.values()] == [1.0] * 4


@pytest.mark.parametrize("where", ["train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"])
@pytest.mark.parametrize("start", [AsyncRobust.start, Strategy.start])
@pytest.mark.parametrize("returned", [None, {"norm": 1.0}, "raises"])
def test_a_user_s_function_that_fails_costs_its_metrics_and_is_logged(
    where: str, returned: Any, start: Callable[..., Result], caplog: pytest.LogCaptureFixture
) -> None:
    def function(records: list[RecordDict], key: str) -> Any:
        assert key == "num-examples" and len(records) == 5
        if returned == "raises":
            raise KeyError(key)
        return returned

    def node(message: Message, context: Context) -> Message:
        reply = app_of()(message, context)
        reply.content["metrics"] = MetricRecord({"norm": 2.0})
        return reply

    strategy = AsyncRobust(**{where: function})
    with VirtualGrid(node, 5) as grid:
        result = start(strategy, grid, ArrayRecord(START), 3)  # type: ignore[arg-type]
    assert strategy.statistics().accepted == 15
    train, evaluate = result.train_metrics_clientapp, result.evaluate_metrics_clientapp
    assert (train == {}) == (where == "train_metrics_aggr_fn")
    assert (evaluate == {}) == (where == "evaluate_metrics_aggr_fn")
    logged = "raised KeyError" if returned == "raises" else f"returned {type(returned).__name__}"
    assert caplog.text.count(f"The function that aggregates metrics {logged}") == 3


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=9),
    st.lists(st.floats(-1e290, 1e290), max_size=4),
)
def test_fewer_liars_than_honest_nodes_keep_the_median_among_the_honest(
    honest: list[float], lies: list[float]
) -> None:
    lies = lies[: len(honest) - 1]
    answers = [({"loss": value}, 1.0) for value in honest + lies]
    record = aggregate_metrics(answers, None)
    assert record is not None and min(honest) <= record["loss"] <= max(honest)  # type: ignore[operator]


# --- where nodes cannot evaluate --------------------------------------------------------------


def test_without_an_evaluate_function_nodes_are_soon_not_asked_and_one_warning_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from flwr.clientapp import ClientApp

    client, requested = ClientApp(), []

    @client.train()
    def train(message: Message, context: Context) -> Message:
        return app_of()(message, context)

    def watched(message: Message, context: Context) -> Message:
        if message.metadata.message_type == MessageType.EVALUATE:
            requested.append(context.node_id)
        return client(message, context)

    strategy = AsyncRobust()
    with caplog.at_level(logging.WARNING, logger="flwr"), VirtualGrid(watched, 4) as grid:
        result = strategy.start(grid, ArrayRecord(START), 20)  # type: ignore[arg-type]
    # The second request was pending when the first was answered.
    assert set(Counter(requested).values()) <= {1, 2} and len(set(requested)) == 4
    assert result.evaluate_metrics_clientapp == {} and strategy.statistics().accepted == 80
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 1 and "Register an evaluate function in the ClientApp" in warned[0]


# --- checkpoints ----------------------------------------------------------------------------------


def test_a_finished_run_keeps_the_metrics_of_its_last_round(tmp_path: Path) -> None:
    results = []
    for resume in (False, True):
        strategy = AsyncRobust(checkpoints=Checkpoints(tmp_path, resume=resume))
        with VirtualGrid(app_of(), 3) as grid:
            results.append(strategy.start(grid, ArrayRecord(START), 3))  # type: ignore[arg-type]
    assert list(results[0].evaluate_metrics_clientapp) == [1, 2, 3]
    assert results[1].evaluate_metrics_clientapp == results[0].evaluate_metrics_clientapp
    assert results[1].train_metrics_clientapp == results[0].train_metrics_clientapp
