"""Estimators against traces computed by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync import ConfigError, estimators
from flwr_byzasync.estimators import momentum, mu2, sgd


def gradient_of(slope: float, shift: float):  # noqa: ANN201 - a local closure
    return lambda x: slope * x + shift


def test_mu2_follows_the_trace_written_by_hand() -> None:
    estimator = mu2(beta=0.25)
    # Query 1 at x=2 with gradient z1(x) = x:            d1 = 2
    # Query 2 at x=1 with gradient z2(x) = 3x + 1:       d2 = 4 + 0.75 (2 − 7) = 0.25
    # Query 3 at x=0 with gradient z3(x) = −x + 2:       d3 = 2 + 0.75 (0.25 − 1) = 1.4375
    points = [torch.tensor([value]) for value in (2.0, 1.0, 0.0)]
    gradients = [gradient_of(1, 0), gradient_of(3, 1), gradient_of(-1, 2)]
    memory, sent = estimator.init(), []
    for count, (point, gradient) in enumerate(zip(points, gradients, strict=True)):
        vector, memory = estimator.update(memory, point, gradient, count)
        sent.append(vector.tolist())
    assert sent == [[2.0], [0.25], [1.4375]]


def test_mu2_in_theory_weighs_the_new_gradient_by_one_over_count_plus_one() -> None:
    estimator = mu2(beta=None)
    memory = (torch.tensor([1.0]), torch.tensor([10.0]), torch.tensor(3))
    # s = 3 came with the query, so β = 1/4: d = 5 + 0.75 (10 − 4) = 9.5
    vector, _ = estimator.update(memory, torch.tensor([2.0]), gradient_of(1, 3), 3)
    assert vector.tolist() == [9.5]


def weights_of_new_gradients(counts: list[int], forgets_before: int = -1) -> list[float]:
    """Return β of each reply: d moves by β when the gradient is 1 at both points, d_prev 0."""
    estimator, memory, betas = mu2(beta=None), (), []
    for k, count in enumerate(counts):
        if k == forgets_before:
            memory = ()
        if memory:
            memory = (memory[0], torch.zeros(1), *memory[2:])
        vector, memory = estimator.update(memory, torch.zeros(1), lambda x: x + 1, count)
        betas.append(float(vector))
    return betas


@given(st.integers(1, 30))
def test_when_nothing_is_lost_beta_is_the_theory_s(replies: int) -> None:
    betas = weights_of_new_gradients(list(range(replies)))
    assert betas == pytest.approx([1 / (count + 1) for count in range(replies)], abs=1e-6)


@given(st.integers(1, 30), st.integers(1, 30))
def test_a_node_that_lost_its_memory_starts_its_average_anew(before: int, after: int) -> None:
    betas = weights_of_new_gradients(list(range(before + after)), forgets_before=before)
    expected = [1 / (k + 1) for k in [*range(before), *range(after)]]
    assert betas == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_replies_that_were_not_accepted_do_not_lower_beta(counts: list[int]) -> None:
    counts = sorted(counts)
    betas = weights_of_new_gradients(counts)
    assert betas[0] == 1.0
    for k, (beta, count) in enumerate(zip(betas[1:], counts[1:], strict=True), start=1):
        assert beta == pytest.approx(1 / (min(k, count) + 1), abs=1e-6)


def test_mu2_with_a_constant_beta_remembers_two_vectors_and_no_number() -> None:
    _, memory = mu2(beta=0.25).update((), torch.ones(3), gradient_of(1, 0), 0)
    assert [tensor.shape for tensor in memory] == [(3,), (3,)]


def test_mu2_evaluates_both_points_on_the_same_gradient_function() -> None:
    points: list[float] = []

    def gradient(x: Tensor) -> Tensor:
        points.append(float(x[0]))
        return x

    mu2().update((torch.tensor([7.0]), torch.tensor([0.0])), torch.tensor([5.0]), gradient, 1)
    assert points == [5.0, 7.0]


def test_momentum_keeps_its_share_of_the_last_vector() -> None:
    estimator = momentum(beta=0.9)
    first, memory = estimator.update((), torch.tensor([1.0]), gradient_of(2, 0), 0)
    second, _ = estimator.update(memory, torch.tensor([0.0]), gradient_of(2, 5), 1)
    assert first.tolist() == [2.0]
    torch.testing.assert_close(second, torch.tensor([0.9 * 2 + 0.1 * 5]))


@given(st.integers(0, 5), st.floats(-10, 10))
def test_sgd_sends_the_gradient_whatever_came_before(count: int, value: float) -> None:
    point = torch.tensor([value])
    vector, memory = sgd().update((), point, gradient_of(2, 1), count)
    assert memory == ()
    assert torch.equal(vector, 2 * point + 1)


@given(st.floats(0.01, 1.0), st.floats(-5, 5), st.floats(-5, 5))
def test_mu2_on_a_noiseless_gradient_is_the_gradient(beta: float, a: float, b: float) -> None:
    estimator, gradient = mu2(beta=beta), gradient_of(2, -1)
    first, last = torch.tensor([a]), torch.tensor([b])
    _, memory = estimator.update((), first, gradient, 0)
    vector, _ = estimator.update(memory, last, gradient, 1)
    torch.testing.assert_close(vector, gradient(last), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1.5, -0.25, float("nan"), True, "0.25"])
def test_mu2_refuses_a_beta_outside_its_interval(beta: object) -> None:
    with pytest.raises(ConfigError, match=r"^beta=.* is not legal: it must be .*\(0, 1\]; pass"):
        mu2(beta=beta)  # type: ignore[arg-type]


@pytest.mark.parametrize("beta", [1.0, -0.1, float("inf"), None])
def test_momentum_refuses_a_beta_outside_its_interval(beta: object) -> None:
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        momentum(beta=beta)  # type: ignore[arg-type]


def test_estimators_are_built_by_name_and_take_their_own_default_beta() -> None:
    memory, point = (torch.tensor([0.0]), torch.tensor([8.0])), torch.tensor([0.0])
    vector, _ = estimators.build("mu2").update(memory, point, gradient_of(0, 0), 1)
    assert vector.tolist() == [6.0]
    vector, _ = estimators.build("momentum").update(memory[1:], point, gradient_of(0, 0), 1)
    torch.testing.assert_close(vector, torch.tensor([7.2]))
    with pytest.raises(ConfigError, match="optimizer='adam'"):
        estimators.build("adam")
