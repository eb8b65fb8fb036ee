"""Optimizers against traces computed by hand, and the laws of their schedules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync import ConfigError
from flwr_byzasync.optimizers import SGD, AnyTimeSGD, Iterates, Optimizer


def play(optimizer: Optimizer, start: float, directions: list[float]) -> list[Iterates]:
    states = [optimizer.init(torch.tensor([start], dtype=torch.float64))]
    for direction in directions:
        vector = torch.tensor([direction], dtype=torch.float64)
        states.append(optimizer.step(states[-1], vector))
    return states


def test_practice_schedule_follows_the_trace_written_by_hand() -> None:
    # w: 1 -> 1 − 0.5·2 = 0 -> 0 − 0.5·(−4) = 2;  x: 1 -> 0.1·0 + 0.9·1 = 0.9 -> 0.2 + 0.81 = 1.01
    last = play(AnyTimeSGD(lr=0.5, gamma=0.1), 1.0, [2.0, -4.0])[-1]
    assert last.w.tolist() == [2.0]
    torch.testing.assert_close(last.x, torch.tensor([1.01], dtype=torch.float64))


def test_practice_gamma_is_a_tenth_by_default() -> None:
    assert play(AnyTimeSGD(lr=1.0), 0.0, [-10.0])[-1].x.tolist() == [1.0]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.floats(-3, 3))
def test_theory_query_is_the_average_of_the_iterates_weighted_by_their_number(
    directions: list[float], start: float
) -> None:
    states = play(AnyTimeSGD(lr=0.1, schedule="theory"), start, directions)
    w = torch.stack([state.w for state in states])
    alpha = torch.arange(1, len(states) + 1, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(states[-1].x, (alpha * w).sum(dim=0) / alpha.sum())


def test_theory_steps_grow_with_their_number() -> None:
    w = [state.w.tolist()[0] for state in play(AnyTimeSGD(1.0, schedule="theory"), 0.0, [1.0] * 3)]
    assert w == [0.0, -1.0, -3.0, -6.0]


@given(st.lists(st.floats(-5, 5), max_size=8))
def test_sgd_queries_at_its_iterate(directions: list[float]) -> None:
    for state in play(SGD(lr=0.3), 1.0, directions):
        assert torch.equal(state.x, state.w)


@given(st.lists(st.floats(-100, 100), max_size=8), st.floats(0.1, 10))
def test_projection_keeps_the_iterate_in_the_ball_around_the_start(
    directions: list[float], radius: float
) -> None:
    for optimizer in (SGD(1.0, radius=radius), AnyTimeSGD(1.0, radius=radius)):
        for state in play(optimizer, 5.0, directions):
            assert float((state.w - state.start).norm()) <= radius * (1 + 1e-12)


def test_projection_leaves_what_lies_inside_alone() -> None:
    assert torch.equal(
        play(SGD(1.0, radius=100.0), 5.0, [1.0, 2.0])[-1].w, play(SGD(1.0), 5.0, [1.0, 2.0])[-1].w
    )


@pytest.mark.parametrize("optimizer", [SGD(0.1), AnyTimeSGD(0.1), AnyTimeSGD(0.1, radius=1.0)])
def test_a_step_writes_none_of_its_inputs(optimizer: Optimizer) -> None:
    start, direction = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    before: Tensor = torch.cat([start, direction]).clone()
    state = optimizer.step(optimizer.init(start), direction)
    optimizer.step(state, direction)
    assert torch.equal(torch.cat([start, direction]), before)


@pytest.mark.parametrize("lr", [0.0, -0.1, float("nan"), float("inf"), "0.1", None, True])
def test_a_learning_rate_outside_its_interval_is_refused(lr: object) -> None:
    for make in (SGD, AnyTimeSGD):
        with pytest.raises(ConfigError, match=r"^lr=.*\(0, inf\); pass for example lr=0.01\.$"):
            make(lr)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": 0.0},
        {"gamma": 1.1},
        {"radius": 0.0},
        {"radius": float("nan")},
        {"schedule": "fast"},
        {"schedule": "theory", "gamma": 0.1},
    ],
)
def test_other_settings_outside_their_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="is not legal: it must be"):
        AnyTimeSGD(0.1, **settings)  # type: ignore[arg-type]
