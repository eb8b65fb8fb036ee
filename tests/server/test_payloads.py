"""What replies contain and how each becomes its node's row: models and gradients."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync import (
    AsyncRobust,
    CorrectedGradients,
    Gradient,
    Gradients,
    Models,
    Momenta,
    Payload,
    Query,
    Quorum,
    Reason,
    VirtualGrid,
    client_app,
)
from flwr_byzasync.aggregators import CoordinateWiseMedian, Mean
from flwr_byzasync.core import events
from flwr_byzasync.core.contribution import Contribution
from flwr_byzasync.core.membership import on_connected
from flwr_byzasync.core.state import InFlightQuery, initial_state
from flwr_byzasync.estimators import Estimator, momentum, mu2, sgd
from flwr_byzasync.optimizers import SGD, AnyTimeSGD, Iterates
from flwr_byzasync.server.endpoint import Endpoint
from flwr_byzasync.simulation.federation import Churn, VirtualNode
from flwr_byzasync.wire.arrays import record_of
from flwr_byzasync.wire.keys import MessageFormat
from tests.fakes import FakeClock, FakeGrid, FakeNode, reply_to
from tests.settings import policy_of
from tests.wire.zoo import CPU

START = {"w": torch.tensor([4.0, -4.0]), "b": torch.tensor([[1.0]])}
LARGE = float(np.float32(3e38))
FLOATS = st.floats(-LARGE, LARGE, width=32)


def endpoint_of(
    model: Mapping[str, Tensor], payload: Payload, optimizer: Any = None, **settings: Any
) -> Endpoint:
    policy = policy_of(payload, **{"nodes": 1, **settings})
    rule, optimizer = CoordinateWiseMedian(), optimizer or SGD(0.5)
    state = initial_state(model, (), rule, optimizer, policy, CPU)
    return Endpoint(state, MessageFormat(payload.NAME), CPU, lambda: 0.0)


def send_query(endpoint: Endpoint, node_id: int, key: str) -> Message:
    """Send a node a query, and return it."""
    endpoint.state = on_connected(endpoint.state, [*endpoint.state.nodes, node_id])
    query = endpoint.state.next_query_id
    message = endpoint.query(node_id, query, 1, {})
    message.metadata.__dict__["_message_id"] = key
    endpoint.state = events.on_sent(endpoint.state, node_id, key, query, 0.0)
    return message


def weights_of(message: Message) -> dict[str, Tensor]:
    return message.content.array_records["arrays"].to_torch_state_dict()  # type: ignore[return-value]


def answer(endpoint: Endpoint, message: Message, arrays: Mapping[str, Tensor], **more: Any) -> None:
    content = RecordDict({"arrays": record_of(arrays), **more})
    endpoint.receive(message.metadata.message_id, Message(content, reply_to=message))


def row_of(endpoint: Endpoint, node_id: int) -> Tensor:
    row = endpoint.state.nodes[node_id].row
    assert row is not None
    return endpoint.state.tables.parameters.view().rows[row]


# --- models -------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(FLOATS, min_size=3, max_size=3)), max_size=12),
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
)
def test_a_row_is_what_that_node_was_sent_minus_what_it_returned(
    script: list[tuple[int, list[float]]], dtype: torch.dtype
) -> None:
    """However often the model has moved between the two, and whatever its dtype."""
    scale = 1e-36 if dtype is torch.float16 else 1e-3
    model = {name: tensor.to(dtype) for name, tensor in START.items()}
    endpoint = endpoint_of(model, Models(0.0))
    pending = {node_id: send_query(endpoint, node_id, f"first {node_id}") for node_id in range(3)}
    steps = dict.fromkeys(range(3), 0)
    for turn, (node_id, values) in enumerate(script):
        sent = weights_of(pending[node_id])
        flat = (torch.tensor(values) * scale).to(dtype)
        returned = {"w": flat[:2], "b": flat[2:].reshape(1, 1)}
        before = endpoint.state
        answer(endpoint, pending[node_id], returned)
        assert endpoint.state.accepted == before.accepted + 1
        kept = endpoint.state.layout.parameters.dtype
        expected = torch.cat([(sent[k].to(kept) - returned[k].to(kept)).ravel() for k in sent])
        assert torch.equal(row_of(endpoint, node_id), expected)
        age = before.iterates.step - steps[node_id]
        assert endpoint.state.staleness - before.staleness == age
        pending[node_id] = send_query(endpoint, node_id, f"{turn}")
        steps[node_id] = endpoint.state.iterates.step


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_nodes_that_learn_nothing_leave_a_half_precision_model_unchanged(
    share: float,
) -> None:
    """The server's own copy is more precise: nodes were sent its rounding."""
    model = {"w": torch.tensor([1.0, 3.0], dtype=torch.float16)}
    endpoint = endpoint_of(model, Models(share), SGD(1e-4))
    first = send_query(endpoint, 0, "a")
    answer(endpoint, first, {"w": torch.tensor([2.0, 0.0], dtype=torch.float16)})
    moved = endpoint.state.iterates.x
    assert not torch.equal(moved, moved.half().float())
    second = send_query(endpoint, 0, "b")
    answer(endpoint, second, weights_of(second))
    assert torch.equal(endpoint.state.iterates.x, moved)


def test_a_late_model_is_compared_with_the_query_it_answers() -> None:
    endpoint = endpoint_of(START, Models(0.0), min_reply_timeout=1.0, reply_timeout=1.0)
    late, other = send_query(endpoint, 0, "late"), send_query(endpoint, 1, "other")
    for k in range(3):
        answer(endpoint, other, {k: v - 1.0 for k, v in weights_of(other).items()})
        other = send_query(endpoint, 1, f"other {k}")
    endpoint.state = events.on_clock(endpoint.state, 2.0)
    assert endpoint.state.reasons == {Reason.EXPIRED: 2}
    answer(endpoint, late, {k: v - 0.25 for k, v in START.items()})
    assert row_of(endpoint, 0).tolist() == [0.25, 0.25, 0.25]
    assert endpoint.state.staleness == 3


@given(st.floats(float(np.float32(2e38)), LARGE, width=32), st.booleans())
def test_a_difference_beyond_the_dtype_is_an_overflow_and_moves_nothing(
    large: float, negative: bool
) -> None:
    sign = -1.0 if negative else 1.0
    endpoint = endpoint_of({"w": torch.tensor([sign * large])}, Models(0.0))
    message, before = send_query(endpoint, 0, "a"), endpoint.state
    answer(endpoint, message, {"w": torch.tensor([-sign * large])})
    after = endpoint.state
    assert after.reasons == {Reason.OVERFLOW: 1} and after.accepted == 0
    assert after.iterates is before.iterates and after.tables is before.tables
    assert len(after.tables.parameters) == 0


def model_with_buffers() -> dict[str, Tensor]:
    return {
        "n.num_batches_tracked": torch.tensor(5),
        "a.weight": torch.ones(2, 2),
        "n.running_mean": torch.tensor([0.5]),
        "b.weight": torch.full((2,), 2.0, dtype=torch.float64),
        "n.mask": torch.tensor([True, False]),
    }


def test_all_arrays_of_a_model_travel_in_one_record_in_the_user_s_order() -> None:
    clock, replied, model = FakeClock(), [], model_with_buffers()

    def node(message: Message) -> RecordDict:
        content = message.content
        assert list(content) == ["arrays", "config"]
        assert not [key for key in content["config"] if key.startswith("byz.")]
        assert content["config"]["server-round"] == 1
        arrays = content.array_records["arrays"].to_torch_state_dict()
        assert list(arrays) == list(model)
        assert all(arrays[k].dtype == model[k].dtype for k in model)
        number = message.metadata.dst_node_id
        replied.append(number)
        arrays["n.num_batches_tracked"] = torch.tensor(10 * number)  # 10, 20, 30, 40
        arrays["n.running_mean"] = torch.tensor([float(number)])
        arrays["b.weight"] -= 0.5
        return RecordDict(
            {"any name": ArrayRecord(arrays), "another name": MetricRecord({"loss": 2.0})}
        )

    strategy = AsyncRobust(
        fraction_evaluate=0.0, min_available_nodes=4,
    )  # fmt: skip
    grid = FakeGrid(clock, {k: FakeNode(node) for k in (1, 2, 3, 4)})
    result = strategy.start(grid, ArrayRecord(model), 1)  # type: ignore[arg-type]
    reached = result.arrays.to_torch_state_dict()
    assert strategy.statistics().accepted == 4 and strategy.statistics().steps == 1
    assert list(reached) == list(model)
    # Counters are never averaged: the lower median. Floating buffers take the median.
    assert reached["n.num_batches_tracked"] == 20 and reached["n.running_mean"].tolist() == [2.5]
    # One step over four nodes: 2/4 of each one's change.
    assert torch.equal(reached["b.weight"], model["b.weight"] - 0.25)
    assert torch.equal(reached["a.weight"], model["a.weight"])
    assert result.train_metrics_clientapp[1] == {"loss": 2.0}


@pytest.mark.parametrize(
    ("name", "array", "reason", "sentence"),
    [
        ("w", np.ones(3, np.float32), Reason.WRONG_SHAPE, "'w' is (3,): send (2,)"),
        ("w", np.ones(2), Reason.WRONG_DTYPE, "'w' is 'float64': send float32"),
        ("v", np.ones(2, np.float32), Reason.WRONG_NAMES, "'w' is missing and 'v' is not in the"),
    ],
)
def test_mismatched_arrays_are_logged_once_per_node_with_the_fix(
    name: str, array: Any, reason: Reason, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()

    def odd(message: Message) -> RecordDict:
        return RecordDict({"arrays": ArrayRecord({name: Array(array)})})

    def fits(message: Message) -> RecordDict:
        return RecordDict({"arrays": message.content["arrays"]})

    def run(*nodes: Callable[[Message], RecordDict]) -> tuple[AsyncRobust, Result]:
        strategy = AsyncRobust(fraction_evaluate=0.0, updates_per_round=20)
        grid = FakeGrid(clock, {k: FakeNode(node) for k, node in enumerate(nodes)})
        return strategy, strategy.start(grid, ArrayRecord({"w": START["w"]}), 3)

    with caplog.at_level(logging.WARNING, logger="flwr"):
        strategy, _ = run(fits, fits, odd, odd, fits)
    assert strategy.statistics().accepted == 60 and strategy.statistics().reasons == {reason: 10}
    assert sum(sentence in record.getMessage() for record in caplog.records) == 2
    caplog.clear()
    with caplog.at_level(logging.ERROR, logger="flwr"):
        strategy, result = run(odd, odd)
    assert strategy.statistics().accepted == 0
    assert torch.equal(result.arrays.to_torch_state_dict()["w"], START["w"])
    ended = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert (
        len(ended) == 1
        and "every connected node is quarantined" in ended[0]
        and sentence in ended[0]
    )


def bowl(query: Query) -> Gradient:
    """The gradient of ‖x‖²/2 with batch noise, half of it in the slope."""
    noise = torch.randn(2, 2, generator=query.generator)
    where = query.parameters["w"]
    return Gradient({"w": where + 0.1 * noise[0] * where + 0.1 * noise[1]})


MODEL = {"w": START["w"]}


def trained(message: Message, context: Context) -> Message:
    """A ClientApp that returns weights: one step of gradient descent, noise by partition."""
    content = message.content
    arrays = content.array_records["arrays"].to_torch_state_dict()
    arrays["w"] -= 0.3 * arrays["w"]
    return Message(RecordDict({"model": ArrayRecord(arrays)}), reply_to=message)


@pytest.mark.parametrize("estimator", [sgd(), mu2()])
def test_a_vector_in_a_run_of_models_is_refused_with_what_to_pass(
    estimator: Estimator, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = AsyncRobust(fraction_evaluate=0.0)
    with VirtualGrid(client_app(bowl, estimator=estimator), 2) as grid:
        strategy.start(grid, ArrayRecord(MODEL), 2)  # type: ignore[arg-type]
    assert strategy.statistics().reasons == {Reason.WRONG_PAYLOAD: 10}
    assert "pass payload=Momenta() to the strategy" in caplog.text


@pytest.mark.parametrize("payload", [Momenta(), Gradients()])
def test_a_model_in_a_run_of_vectors_is_refused_with_what_to_pass(
    payload: Payload, caplog: pytest.LogCaptureFixture
) -> None:
    def without_payload(message: Message, context: Context) -> Message:
        reply = trained(message, context)
        if context.node_id % 2:
            reply.content["config"] = ConfigRecord({"lr": 0.1})
        return reply

    strategy = AsyncRobust(CoordinateWiseMedian(), SGD(0.1), payload=payload)
    with VirtualGrid(without_payload, 2) as grid:
        strategy.start(grid, ArrayRecord(MODEL), 2)  # type: ignore[arg-type]
    reasons = strategy.statistics().reasons
    assert reasons == {Reason.WRONG_PAYLOAD: 5, Reason.MISSING_RECORD: 5}
    assert caplog.text.count("pass payload=Models() to the strategy") == 3  # two nodes, and the end


def test_a_payload_that_a_client_invents_is_shown_in_quotes_and_not_recommended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()

    def lying(message: Message) -> RecordDict:
        return reply_to(message, config=ConfigRecord({"byz.payload": "x\n[ROUND 9] "}))

    strategy = AsyncRobust(
        CoordinateWiseMedian(),
        SGD(0.1),
    )
    strategy.start(FakeGrid(clock, {1: FakeNode(lying), 2: FakeNode(lying)}), ArrayRecord(START))
    assert "it is a 'x\\n[ROUND 9] '" in caplog.text and "pass payload" not in caplog.text


@pytest.mark.parametrize(
    ("idle", "payload", "warnings"),
    [(3, Models(), 1), (5, Models(), 1), (2, Models(), 0), (0, Models(), 0), (5, Momenta(), 0)],
)
def test_a_majority_that_returns_the_model_as_it_was_sent_is_asked_for_its_data_once(
    idle: int, payload: Payload, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    """However early the idle nodes reply: one of one is no majority of the five."""

    def trains(message: Message) -> RecordDict:
        return reply(message, lambda x: 0.9 * x)

    def stays(message: Message) -> RecordDict:
        return reply(message, lambda x: x)

    def reply(message: Message, change: Callable[[Tensor], Tensor]) -> RecordDict:
        if isinstance(payload, Momenta):
            return reply_to(message, change)
        moved = {name: change(value) for name, value in weights_of(message).items()}
        return RecordDict({"arrays": ArrayRecord(moved)})  # type: ignore[arg-type]

    nodes = {k: FakeNode(stays if k < idle else trains, 1.0 + k) for k in range(5)}
    settings: dict[str, Any] = {"min_available_nodes": 5, "quorum": Quorum(5), "payload": payload}
    strategy = AsyncRobust(CoordinateWiseMedian(), SGD(0.1), fraction_evaluate=0.0, **settings)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        strategy.start(FakeGrid(FakeClock(), nodes), ArrayRecord(START), 20)
    asked = [text for text in caplog.messages if "do these nodes have data" in text]
    assert len(asked) == warnings == len(caplog.messages)
    assert all(text.startswith(f"{idle} of 5 nodes") for text in asked)


# --- momentum on the server against momentum on the nodes -----------------------------------------

PACES = [VirtualNode(compute=lambda rng: rng.lognormal(0.0, 0.5))] * 4


def run(
    estimator: Estimator, dtype: torch.dtype = torch.float32, **settings: Any
) -> tuple[Any, ...]:
    """Return w, x, rows and counts after 60 replies."""
    federation = {key: settings.pop(key) for key in ("churn",) if key in settings}
    strategy = AsyncRobust(
        CoordinateWiseMedian(), AnyTimeSGD(0.1), updates_per_round=30, quorum=Quorum(3), **settings
    )
    with VirtualGrid(client_app(bowl, estimator=estimator), PACES, seed=2, **federation) as grid:
        model = ArrayRecord({"w": START["w"].to(dtype)})  # type: ignore[dict-item]
        strategy.start(grid, model, 2)
    assert strategy._hooks.endpoint is not None
    state = strategy._hooks.endpoint.state
    assert state.accepted == 60
    table = state.tables.parameters
    return state.iterates.w, state.iterates.x, table.view().rows.clone(), table.counts


def assert_same_bits(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert one[3] == other[3]
    assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.9, 0.3])
def test_the_server_s_momentum_is_the_node_s_bit_for_bit(beta: float, dtype: torch.dtype) -> None:
    on_server = run(sgd(), dtype, payload=Gradients(beta))
    assert_same_bits(on_server, run(momentum(beta), dtype))
    assert not torch.equal(on_server[1], run(sgd(), dtype)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.25, 1.0, None])
def test_the_server_s_correction_is_the_node_s_bit_for_bit(
    beta: float | None, dtype: torch.dtype
) -> None:
    on_server = run(sgd(), dtype, payload=CorrectedGradients(beta))
    assert_same_bits(on_server, run(mu2(beta), dtype))


def test_a_client_whose_server_corrects_keeps_no_state() -> None:
    app = client_app(bowl, estimator=mu2())
    kept = []

    def watched(message: Message, context: Context) -> Message:
        reply = app(message, context)
        kept.append(len(context.state))
        requested = "arrays-prev" in message.content
        assert ("arrays-prev" in reply.content) == requested
        assert requested == (message.content["config"]["byz.count"] > 0)
        return reply

    strategy = AsyncRobust(CoordinateWiseMedian(), SGD(0.1), payload=CorrectedGradients())
    with VirtualGrid(watched, 3) as grid:
        strategy.start(grid, ArrayRecord(MODEL), 4)  # type: ignore[arg-type]
    assert strategy.statistics().accepted == 12
    assert kept and set(kept) == {0}


@pytest.mark.parametrize("beta", [0.25, None])
def test_a_node_whose_row_was_dropped_starts_afresh(beta: float | None) -> None:
    """Also with β = 1/(s + 1): s counts the replies in the row, or it never forgets its start."""
    payload = CorrectedGradients(beta)
    endpoint = endpoint_of(MODEL, payload, departed="drop")

    def exchange(key: str, gradient: list[float], before: list[float] | None) -> None:
        message = send_query(endpoint, 0, key)
        assert ("arrays-prev" in message.content) == (before is not None)
        config = message.content["config"]
        echo = ConfigRecord({k: config[k] for k in ("byz.query", "byz.payload")})
        more: dict[str, Any] = {"config": echo}
        if before is not None:
            more["arrays-prev"] = record_of({"w": torch.tensor(before)})
        answer(endpoint, message, {"w": torch.tensor(gradient)}, **more)

    exchange("0", [8.0, 8.0], None)
    for k in range(1, 8):
        exchange(f"{k}", [8.0, 8.0], [8.0, 8.0])
    endpoint.state = on_connected(endpoint.state, [])
    assert len(endpoint.state.tables.parameters) == 0
    exchange("again", [2.0, 4.0], None)
    assert row_of(endpoint, 0).tolist() == [2.0, 4.0]
    exchange("and again", [0.0, 0.0], [0.0, 0.0])
    share = 0.5 if beta is None else 0.75
    assert row_of(endpoint, 0).tolist() == [2.0 * share, 4.0 * share]
    assert endpoint.state.nodes[0].accepted == 10


def test_a_reply_without_the_requested_gradient_is_rejected() -> None:
    endpoint = endpoint_of(MODEL, CorrectedGradients())
    for key in ("a", "b"):
        message = send_query(endpoint, 0, key)
        config = message.content["config"]
        echo = ConfigRecord({k: config[k] for k in ("byz.query", "byz.payload")})
        answer(endpoint, message, MODEL, config=echo)
    assert endpoint.state.reasons == {Reason.MISSING_RECORD: 1} and endpoint.state.accepted == 1


@given(
    st.lists(FLOATS, min_size=3, max_size=3),
    st.lists(FLOATS, min_size=3, max_size=3),
    st.floats(0.0, 0.99),
)
def test_momentum_on_the_server_stays_between_the_row_and_the_reply(
    row: list[float], reply: list[float], beta: float
) -> None:
    """So that finite vectors never overflow, however far apart they are."""
    old, new = torch.tensor(row), torch.tensor(reply)
    made = Gradients(beta).to_row(Contribution(new, row=old, count=3))
    lowest, highest = torch.minimum(old, new), torch.maximum(old, new)
    slack = 1e-6 * torch.maximum(old.abs(), new.abs()) + 1e-44
    assert bool((made >= lowest - slack).all() and (made <= highest + slack).all())


def test_models_keep_momentum_on_the_server_too() -> None:
    endpoint = endpoint_of(MODEL, Models(0.0, 0.5))
    first = send_query(endpoint, 0, "a")
    answer(endpoint, first, {"w": weights_of(first)["w"] - 1.0})
    second = send_query(endpoint, 0, "b")
    answer(endpoint, second, {"w": weights_of(second)["w"] - 3.0})
    assert row_of(endpoint, 0).tolist() == [2.0, 2.0]


# --- a step by the number of nodes ----------------------------------------------------------------


def test_a_step_per_node_divides_by_the_number_of_rows() -> None:
    endpoint = endpoint_of(
        {"w": torch.zeros(1)}, Models(0.0), SGD(1.0, per_node=True), departed="drop"
    )
    steps = []
    for node_id in (0, 1, 2):
        message, before = send_query(endpoint, node_id, f"{node_id}"), endpoint.state.iterates.x
        answer(endpoint, message, {"w": weights_of(message)["w"] - 6.0})
        steps.append(float(before - endpoint.state.iterates.x))
    endpoint.state = on_connected(endpoint.state, [2])
    message, before = send_query(endpoint, 2, "last"), endpoint.state.iterates.x
    answer(endpoint, message, {"w": weights_of(message)["w"] - 6.0})
    steps.append(float(before - endpoint.state.iterates.x))
    assert steps == [6.0, 3.0, 2.0, 6.0]


def test_a_third_party_optimizer_declares_whether_it_steps_per_node() -> None:
    class Recording:
        per_node = True

        def init(self, start: Tensor) -> Iterates:
            return Iterates(start, start, start)

        def step(self, state: Iterates, direction: Tensor) -> Iterates:
            directions.append(direction.tolist())
            return Iterates(state.start, state.w, state.x, state.step + 1)

    directions: list[list[float]] = []
    endpoint = endpoint_of({"w": torch.zeros(1)}, Models(0.0), Recording())
    for node_id in (0, 1):
        message = send_query(endpoint, node_id, f"{node_id}")
        answer(endpoint, message, {"w": torch.tensor([-8.0])})
    assert directions == [[8.0], [4.0]]


@pytest.mark.parametrize("liars", [0, 3])
def test_m_replies_go_as_far_as_one_round_of_fedavg(liars: int) -> None:
    """With a step of 1/m, and nodes in turn: the drop-in gets as far as averaging."""

    def node(message: Message, context: Context) -> Message:
        reply = trained(message, context)
        if context.node_config["partition-id"] < liars:
            lie = {"w": torch.full((2,), 1e6)}
            reply.content["model"] = ArrayRecord(lie)  # type: ignore[arg-type]
        return reply

    whole: dict[str, Any] = {"optimizer": SGD(1.0, per_node=True), "payload": Models()}
    strategy = AsyncRobust(fraction_evaluate=0.0, **whole)
    with VirtualGrid(node, 10) as grid:
        result = strategy.start(grid, ArrayRecord(MODEL), 20)  # type: ignore[arg-type]
    reached = result.arrays.to_torch_state_dict()["w"]
    in_rounds = 0.7**20
    assert float(reached[0]) == pytest.approx(4 * in_rounds, abs=4 * 0.02)
    mean = AsyncRobust(Mean(), fraction_evaluate=0.0, **whole)
    with VirtualGrid(node, 10) as grid:
        moved = mean.start(grid, ArrayRecord(MODEL), 20)  # type: ignore[arg-type]
    assert (float(moved.arrays.to_torch_state_dict()["w"].norm()) > 100) == (liars > 0)


def test_a_query_that_is_late_or_lost_leaves_no_point_behind() -> None:
    """One query per node is in flight, so at most one point per node is kept."""
    churn = [Churn(3.5, 0, "leave"), Churn(9.0, 0, "join")]
    strategy = AsyncRobust(fraction_evaluate=0.0, quorum=Quorum(2), updates_per_round=40)
    with VirtualGrid(trained, 3, churn=churn) as grid:
        strategy.start(grid, ArrayRecord(MODEL), 1)  # type: ignore[arg-type]
    assert strategy._hooks.endpoint is not None
    in_flight: Mapping[str, InFlightQuery] = strategy._hooks.endpoint.state.in_flight
    assert 0 < len(in_flight) <= 3 and all(query.point is not None for query in in_flight.values())
    assert all(node.point is None for node in strategy._hooks.endpoint.state.nodes.values())
