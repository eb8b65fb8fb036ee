"""Old models follow the server: the formula, and that no age makes training swing up."""

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
from tests.server.test_payloads import answer, ask, weights_of
from tests.settings import policy_of
from tests.wire.zoo import CPU

NODES, SIZE = 4, 3
VECTORS = st.lists(st.floats(-8, 8, width=16), min_size=SIZE, max_size=SIZE)
ARRIVALS = st.lists(st.integers(0, NODES - 1), min_size=1, max_size=30)
MEDIAN = CoordinateWiseMedian()


def no_law(rows: Tensor, weights: Tensor) -> Tensor:
    """Return what depends on where the rows are; a function declares nothing."""
    return (rows * rows.norm(dim=1, keepdim=True)).sum(dim=0) / weights.sum()


class Noting:
    """Goes where it is told, and keeps the directions that it was given."""

    def __init__(self, steps: Sequence[Sequence[float]]) -> None:
        self.seen: list[Tensor] = []
        self._steps = [torch.tensor(step, dtype=torch.float64) for step in steps]

    def init(self, start: Tensor) -> Iterates:
        return Iterates(start, start, start)

    def step(self, state: Iterates, direction: Tensor) -> Iterates:
        x = state.x + self._steps[len(self.seen) % len(self._steps)]
        self.seen.append(direction)
        return Iterates(state.start, x, x, state.step + 1)


def session_of(rule: Aggregator, optimizer: Optimizer, share: float, start: Tensor) -> Endpoint:
    policy = policy_of(Models(share), nodes=1)
    state = initial_state({"w": start}, (), rule, optimizer, policy, CPU, Uniform())
    return Endpoint(state, MessageFormat("model"), CPU, lambda: 0.0)


def play(
    session: Endpoint, arrivals: Sequence[int], trained: Callable[[int, int, Tensor], Tensor]
) -> list[Tensor]:
    """Have nodes answer in this order ``trained(turn, node, query)``; return the points."""
    pending = {node: ask(session, node, f"first {node}") for node in range(NODES)}
    points = [session.state.iterates.x]
    for turn, node in enumerate(arrivals):
        query = weights_of(pending[node])["w"]
        answer(session, pending[node], {"w": trained(turn, node, query)})
        pending[node] = ask(session, node, f"{turn}")
        points.append(session.state.iterates.x)
    return points


# --- the formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [MEDIAN, CTMA(MEDIAN, 0.3), CGE(0.3), no_law], ids=described)
@given(st.data(), st.sampled_from([0.0, 0.25, 0.5, 1.0]), ARRIVALS)
def test_the_direction_is_the_rule_s_over_vectors_that_have_followed_the_server(
    rule: Aggregator, data: st.DataObject, share: float, arrivals: list[int]
) -> None:
    """Whether or not the rule is one that moves with its rows, or is kept up to date."""
    told = data.draw(st.lists(VECTORS, min_size=len(arrivals), max_size=len(arrivals)))
    optimizer = Noting(data.draw(st.lists(VECTORS, min_size=1, max_size=5)))
    session = session_of(rule, optimizer, share, torch.zeros(SIZE).double())
    latest: dict[int, tuple[Tensor, Tensor]] = {}
    expected: list[Tensor] = []

    def trained(turn: int, node: int, query: Tensor) -> Tensor:
        latest[node] = query, torch.tensor(told[turn]).double()
        x = session.state.iterates.x
        rows = torch.stack([q - y + share * (x - q) for q, y in latest.values()])
        expected.append(rule(rows, torch.ones(len(rows))))
        return latest[node][1]

    play(session, arrivals, trained)
    for direction, right in zip(optimizer.seen, expected, strict=True):
        torch.testing.assert_close(direction, right, rtol=1e-9, atol=1e-9)


@given(st.data(), ARRIVALS)
def test_all_of_it_and_a_whole_step_average_the_latest_models(
    data: st.DataObject, arrivals: list[int]
) -> None:
    told = data.draw(st.lists(VECTORS, min_size=len(arrivals), max_size=len(arrivals)))
    session = session_of(Mean(), SGD(1.0), 1.0, torch.ones(SIZE).double())
    latest: dict[int, Tensor] = {}

    def trained(turn: int, node: int, query: Tensor) -> Tensor:
        latest[node] = torch.tensor(told[turn]).double() + 0 * query
        return latest[node]

    points = play(session, arrivals, trained)
    torch.testing.assert_close(points[-1], torch.stack(list(latest.values())).mean(dim=0))


# --- stability ------------------------------------------------------------------------------------


def errors(rule: Aggregator, lr: float, share: float, arrivals: Sequence[int], a: Tensor) -> Tensor:
    """Return how far each point is from the optimum, zero, that training brings nodes closer to."""
    session = session_of(rule, SGD(lr, per_node=True), share, torch.ones(SIZE).double())
    points = play(session, arrivals, lambda _turn, node, query: (1 - a[node]) * query)
    return torch.stack(points).abs().amax(dim=1)


@pytest.mark.parametrize("rule", [Mean(), MEDIAN], ids=str)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=SIZE, max_size=SIZE), min_size=4, max_size=4),
    st.floats(0.01, 2),
    ARRIVALS,
)
def test_with_one_half_the_error_never_grows_however_old_replies_are(
    rule: Aggregator, pull: list[list[float]], lr: float, arrivals: list[int]
) -> None:
    """For training that goes any part of the way to the optimum, and a step up to 2/m."""
    told = errors(rule, lr, 0.5, arrivals, torch.tensor(pull).double())
    assert float(told.max()) <= 1 + 1e-12


def in_rounds_of_age(count: int) -> list[int]:
    """Every node in turn: each query is a round old when its reply comes."""
    return list(range(NODES)) * count


def test_it_is_stable_where_the_same_step_without_it_is_not() -> None:
    """Training to the node's optimum, whatever it starts from: the hardest case."""
    whole, arrivals = torch.ones(NODES, SIZE).double(), in_rounds_of_age(60)
    settled = errors(MEDIAN, 2.0, 0.5, arrivals, whole)
    swinging = errors(MEDIAN, 2.0, 0.0, arrivals, whole)
    assert float(settled[-1]) < 1e-6
    assert float(swinging[-1]) > 1e6


def test_small_steps_of_the_nodes_are_taken_at_nearly_fedavg_s_pace() -> None:
    """Where the former default, half of FedAvg's step without it, had half of its pace."""
    part, rounds = torch.full((NODES, SIZE), 0.05).double(), 60
    fedavg = 0.95**rounds
    now = float(errors(MEDIAN, 2.0, 0.5, in_rounds_of_age(rounds), part)[-1])
    before = float(errors(MEDIAN, 0.5, 0.0, in_rounds_of_age(rounds), part)[-1])
    assert now < 2.5 * fedavg < 4 * fedavg < before


@pytest.mark.parametrize("lr", [2.0, 4.0])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_few_nodes_never_make_a_step_that_goes_beyond_what_they_say(nodes: int, lr: float) -> None:
    """Also where local training goes all the way: with one node 2/m would swing for ever."""
    turns = [node for _ in range(60) for node in range(nodes)]
    session = session_of(MEDIAN, SGD(lr, per_node=True), 0.5, torch.ones(SIZE).double())
    points = play(session, turns, lambda _turn, _node, query: 0 * query)
    assert float(points[-1].abs().max()) < 1e-3


def test_a_query_under_way_is_as_old_as_it_is_when_its_reply_comes() -> None:
    """The error is at most the start's, and not at most that of the rows that there are."""
    whole = torch.ones(NODES, SIZE).double()
    told = errors(Mean(), 2.0, 0.5, [0, 1, 2] * 40 + [3], whole)
    assert float(told[-2]) < 1e-6 < 1e-2 < float(told[-1]) <= 1


# --- the setting ----------------------------------------------------------------------------------


def test_it_is_one_half_for_models_and_absent_elsewhere() -> None:
    assert AsyncRobust().settings.policy.payload == Models(0.5)
    assert Models().delay_compensation == 0.5
    assert AsyncRobust(optimizer=SGD(0.1)).settings.policy.payload == Momenta()
    assert Momenta().delay_compensation == Gradients(0.5).delay_compensation == 0.0


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "half", True])
def test_it_must_be_a_share(share: Any) -> None:
    with pytest.raises(ConfigError, match=r"^delay_compensation=.* a number in \[0, 1\]; pass for"):
        Models(delay_compensation=share)
