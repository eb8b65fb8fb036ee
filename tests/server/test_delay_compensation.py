"""Delay compensation of stale models: its formula, and stability at any staleness."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync import AsyncRobust, ConfigError, Gradients, Models, Momenta
from flwr_byzasync.aggregators import CGE, CTMA, Aggregator, CoordinateWiseMedian, Mean
from flwr_byzasync.checkpoints.snapshot import described
from flwr_byzasync.core.state import initial_state
from flwr_byzasync.optimizers import SGD, Iterates, Optimizer
from flwr_byzasync.server.endpoint import Endpoint
from flwr_byzasync.weights import Uniform
from flwr_byzasync.wire.keys import MessageFormat
from tests.server.test_payloads import answer, send_query, weights_of
from tests.settings import policy_of
from tests.wire.zoo import CPU

NODES, SIZE = 4, 3
VECTORS = st.lists(st.floats(-8, 8, width=16), min_size=SIZE, max_size=SIZE)
ARRIVALS = st.lists(st.integers(0, NODES - 1), min_size=1, max_size=30)
MEDIAN = CoordinateWiseMedian()


def no_law(rows: Tensor, weights: Tensor) -> Tensor:
    """Return a direction that depends on where the rows are; a function declares no laws."""
    return (rows * rows.norm(dim=1, keepdim=True)).sum(dim=0) / weights.sum()


class RecordingOptimizer:
    """Takes prescribed steps, and records the directions passed to it."""

    def __init__(self, steps: Sequence[Sequence[float]]) -> None:
        self.directions: list[Tensor] = []
        self._steps = [torch.tensor(step, dtype=torch.float64) for step in steps]

    def init(self, start: Tensor) -> Iterates:
        return Iterates(start, start, start)

    def step(self, state: Iterates, direction: Tensor) -> Iterates:
        x = state.x + self._steps[len(self.directions) % len(self._steps)]
        self.directions.append(direction)
        return Iterates(state.start, x, x, state.step + 1)


def endpoint_of(rule: Aggregator, optimizer: Optimizer, share: float, start: Tensor) -> Endpoint:
    policy = policy_of(Models(share), nodes=1)
    state = initial_state({"w": start}, (), rule, optimizer, policy, CPU, Uniform())
    return Endpoint(state, MessageFormat("model"), CPU, lambda: 0.0)


def play(
    endpoint: Endpoint, arrivals: Sequence[int], trained: Callable[[int, int, Tensor], Tensor]
) -> list[Tensor]:
    """Have nodes reply ``trained(turn, node, query)`` in this order; return the points."""
    pending = {node: send_query(endpoint, node, f"first {node}") for node in range(NODES)}
    points = [endpoint.state.iterates.x]
    for turn, node in enumerate(arrivals):
        query = weights_of(pending[node])["w"]
        answer(endpoint, pending[node], {"w": trained(turn, node, query)})
        pending[node] = send_query(endpoint, node, f"{turn}")
        points.append(endpoint.state.iterates.x)
    return points


# --- the formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [MEDIAN, CTMA(MEDIAN, 0.3), CGE(0.3), no_law], ids=described)
@given(st.data(), st.sampled_from([0.0, 0.25, 0.5, 1.0]), ARRIVALS)
def test_the_direction_is_the_rule_s_over_delay_compensated_rows(
    rule: Aggregator, data: st.DataObject, share: float, arrivals: list[int]
) -> None:
    """Whether or not the rule is translation equivariant or incremental."""
    replies = data.draw(st.lists(VECTORS, min_size=len(arrivals), max_size=len(arrivals)))
    optimizer = RecordingOptimizer(data.draw(st.lists(VECTORS, min_size=1, max_size=5)))
    endpoint = endpoint_of(rule, optimizer, share, torch.zeros(SIZE).double())
    latest: dict[int, tuple[Tensor, Tensor]] = {}
    expected: list[Tensor] = []

    def trained(turn: int, node: int, query: Tensor) -> Tensor:
        latest[node] = query, torch.tensor(replies[turn]).double()
        x = endpoint.state.iterates.x
        rows = torch.stack([q - y + share * (x - q) for q, y in latest.values()])
        expected.append(rule(rows, torch.ones(len(rows))))
        return latest[node][1]

    play(endpoint, arrivals, trained)
    for direction, target in zip(optimizer.directions, expected, strict=True):
        torch.testing.assert_close(direction, target, rtol=1e-9, atol=1e-9)


@given(st.data(), ARRIVALS)
def test_full_compensation_and_a_unit_step_average_the_latest_models(
    data: st.DataObject, arrivals: list[int]
) -> None:
    replies = data.draw(st.lists(VECTORS, min_size=len(arrivals), max_size=len(arrivals)))
    endpoint = endpoint_of(Mean(), SGD(1.0), 1.0, torch.ones(SIZE).double())
    latest: dict[int, Tensor] = {}

    def trained(turn: int, node: int, query: Tensor) -> Tensor:
        latest[node] = torch.tensor(replies[turn]).double() + 0 * query
        return latest[node]

    points = play(endpoint, arrivals, trained)
    torch.testing.assert_close(points[-1], torch.stack(list(latest.values())).mean(dim=0))


# --- stability ------------------------------------------------------------------------------------


def errors(rule: Aggregator, lr: float, share: float, arrivals: Sequence[int], a: Tensor) -> Tensor:
    """Return each point's distance to zero, the optimum of the nodes' training."""
    endpoint = endpoint_of(rule, SGD(lr, per_node=True), share, torch.ones(SIZE).double())
    points = play(endpoint, arrivals, lambda _turn, node, query: (1 - a[node]) * query)
    return torch.stack(points).abs().amax(dim=1)


@pytest.mark.parametrize("rule", [Mean(), MEDIAN], ids=str)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=SIZE, max_size=SIZE), min_size=4, max_size=4),
    st.floats(0.01, 2),
    ARRIVALS,
)
def test_at_one_half_the_error_never_grows_whatever_the_staleness(
    rule: Aggregator, pull: list[list[float]], lr: float, arrivals: list[int]
) -> None:
    """For training that goes any fraction of the way to the optimum, and a step up to 2/m."""
    distances = errors(rule, lr, 0.5, arrivals, torch.tensor(pull).double())
    assert float(distances.max()) <= 1 + 1e-12


def round_robin(count: int) -> list[int]:
    """Every node in turn: each reply is one round stale."""
    return list(range(NODES)) * count


def test_compensation_is_stable_where_the_same_step_without_it_diverges() -> None:
    """Training that reaches the node's optimum from anywhere: the hardest case."""
    whole, arrivals = torch.ones(NODES, SIZE).double(), round_robin(60)
    stable = errors(MEDIAN, 2.0, 0.5, arrivals, whole)
    diverging = errors(MEDIAN, 2.0, 0.0, arrivals, whole)
    assert float(stable[-1]) < 1e-6
    assert float(diverging[-1]) > 1e6


def test_with_small_local_steps_training_is_nearly_as_fast_as_fedavg() -> None:
    """The former default, half of FedAvg's step without compensation, was half as fast."""
    part, rounds = torch.full((NODES, SIZE), 0.05).double(), 60
    fedavg = 0.95**rounds
    now = float(errors(MEDIAN, 2.0, 0.5, round_robin(rounds), part)[-1])
    before = float(errors(MEDIAN, 0.5, 0.0, round_robin(rounds), part)[-1])
    assert now < 2.5 * fedavg < 4 * fedavg < before


@pytest.mark.parametrize("lr", [2.0, 4.0])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_with_few_nodes_a_step_never_overshoots_their_models(nodes: int, lr: float) -> None:
    """Even where local training reaches the optimum: with one node 2/m would oscillate."""
    turns = [node for _ in range(60) for node in range(nodes)]
    endpoint = endpoint_of(MEDIAN, SGD(lr, per_node=True), 0.5, torch.ones(SIZE).double())
    points = play(endpoint, turns, lambda _turn, _node, query: 0 * query)
    assert float(points[-1].abs().max()) < 1e-3


def test_a_query_in_flight_ages_until_its_reply_arrives() -> None:
    """The error is bounded by the initial one, not by that of the present rows."""
    whole = torch.ones(NODES, SIZE).double()
    distances = errors(Mean(), 2.0, 0.5, [0, 1, 2] * 40 + [3], whole)
    assert float(distances[-2]) < 1e-6 < 1e-2 < float(distances[-1]) <= 1


# --- the setting ----------------------------------------------------------------------------------


def test_delay_compensation_is_one_half_for_models_and_absent_elsewhere() -> None:
    assert AsyncRobust().settings.policy.payload == Models(0.5)
    assert Models().delay_compensation == 0.5
    assert AsyncRobust(optimizer=SGD(0.1)).settings.policy.payload == Momenta()
    assert Momenta().delay_compensation == Gradients(0.5).delay_compensation == 0.0


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "half", True])
def test_delay_compensation_must_be_a_share(share: Any) -> None:
    with pytest.raises(ConfigError, match=r"^delay_compensation=.* a number in \[0, 1\]; pass for"):
        Models(delay_compensation=share)
