"""Rules that look from one point: CGE from the origin, MoNNA from a row, clipping from a median."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync import ConfigError
from flwr_byzasync.aggregators import (
    CGE,
    CTMA,
    Aggregator,
    CenteredClipping,
    CoordinateWiseMedian,
    Law,
    Mean,
    MoNNA,
    build,
)
from flwr_byzasync.aggregators.centered_clipping import GOLDEN, centered_clipping_bound
from flwr_byzasync.aggregators.monna import pivot_bound
from flwr_byzasync.aggregators.rule import bound_of, laws_of
from flwr_byzasync.testing import Weighted, admissible, adversarial_rows, ratio, shares
from tests.aggregators import reference
from tests.aggregators.test_coordinate_rules import (
    LAMBDAS,
    attacked,
    column,
    in_copies,
    mean_of_nearest,
    with_share,
)

lambdas = pytest.mark.parametrize("lam", LAMBDAS, ids=str)


def excess(
    rule: Aggregator,
    case: Weighted,
    lam: Fraction,
    allowed: Callable[..., np.ndarray],
    *trusted: int,
) -> float:
    """Largest ‖A − x̄_G‖²/allowed over all sets G; `allowed` of shares, means and variances."""
    rows, weights = (t.numpy().astype(np.longdouble) for t in case)
    sets = admissible(case.weights, lam, trusted) * weights
    share = sets / sets.sum(axis=1, keepdims=True)
    mean = share @ rows
    variance = (share * ((rows[None] - mean[:, None]) ** 2).sum(axis=2)).sum(axis=1)
    error = ((rule(*case).numpy() - mean) ** 2).sum(axis=1)
    rounding = max((1e-14 * abs(rows).max()) ** 2, 1e-300)
    return float(max(error / (allowed(share, mean, variance) * (1 + 1e-9) + rounding), default=0))


# --- CGE ---------------------------------------------------------------------------------------
@given(drawn=with_share())
def test_cge_is_the_mean_of_the_shortest_copies(drawn: tuple[Weighted, Fraction]) -> None:
    case, lam = drawn
    copies, f = in_copies(case, lam)
    norms = [sum((x * x for x in row), Fraction(0)) for row in copies]
    expected = torch.tensor(mean_of_nearest(copies, norms, len(copies) - f), dtype=torch.float64)
    torch.testing.assert_close(CGE(float(lam))(*case), expected, rtol=1e-9, atol=1e-9)


@lambdas
def test_a_liar_at_the_origin_ruins_cge_where_honest_rows_agree(lam: Fraction) -> None:
    share = float(lam)
    case = column([1.0, 0.0], [1 - share, share])
    result = float(CGE(share)(*case))
    assert result == pytest.approx((1 - 2 * share) / (1 - share), rel=1e-6)
    assert ratio(CGE(share), *case, lam) == math.inf and bound_of(CGE(share), share) is None
    assert ratio(CoordinateWiseMedian(), *case, lam) <= 1 / (1 - 2 * share)


def test_beyond_a_third_a_liar_turns_the_step_of_cge() -> None:
    assert float(CGE(0.4)(*column([1.0, -0.999], [0.6, 0.4]))) < -0.3
    assert float(CGE(0.3)(*column([1.0, -0.999], [0.7, 0.3]))) > 0.1


def test_cge_does_not_move_along_with_the_rows() -> None:
    rows, weights = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.ones(4)
    assert Law.TRANSLATION not in laws_of(CGE(0.25))
    assert float(CGE(0.25)(rows, weights)) == 1.0 and float(CGE(0.25)(rows - 3, weights)) == -1.0


@given(drawn=attacked())
def test_the_error_of_cge_is_at_most_as_long_as_honest_rows(
    drawn: tuple[Weighted, Fraction],
) -> None:
    case, lam = drawn
    factor = float(4 * lam / (1 - lam))
    assert excess(CGE(float(lam)), case, lam, lambda _, m, v: factor * (v + (m**2).sum(1))) <= 1


# --- MoNNA -------------------------------------------------------------------------------------
@st.composite
def with_pivot(draw: st.DrawFn) -> tuple[Weighted, Fraction, int]:
    (rows, weights), lam = draw(st.one_of(with_share(), attacked()))
    used = [i for i, weight in enumerate(weights.tolist()) if weight > 0]
    return Weighted(rows, weights), lam, draw(st.sampled_from(used))


@given(drawn=with_share(), data=st.data())
def test_monna_is_the_mean_of_the_copies_nearest_to_the_pivot(
    drawn: tuple[Weighted, Fraction], data: st.DataObject
) -> None:
    case, lam = drawn
    pivot = data.draw(st.sampled_from(case.weights.nonzero()[:, 0].tolist()))
    copies, f = in_copies(case, lam)
    centre = [Fraction(x) for x in case.rows[pivot].tolist()]
    away = [sum((x - c) ** 2 for x, c in zip(row, centre, strict=True)) for row in copies]
    nearest = mean_of_nearest(copies, [Fraction(a) for a in away], len(copies) - f)
    result = MoNNA(float(lam), pivot)(*case)
    expected = torch.tensor(nearest, dtype=torch.float64)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@given(drawn=with_pivot())
def test_monna_keeps_its_constant_for_sets_that_hold_the_pivot(
    drawn: tuple[Weighted, Fraction, int],
) -> None:
    case, lam, pivot = drawn
    rule = MoNNA(float(lam), pivot)

    def allowed(share: np.ndarray, _: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return np.array([pivot_bound(float(lam), q) for q in share[:, pivot]]) * variance

    assert rule.trusted == (pivot,) and excess(rule, case, lam, allowed, pivot) <= 1


def worst_for_monna(lam: Fraction, q: float) -> Weighted:
    """Pivot, honest rows that are left out, honest rows at the mean, and liars."""
    share = float(lam)
    p = share / (1 - share)
    honest = [q * (1 - share), share, (1 - p - q) * (1 - share)]
    return column([0.0, 1.0, p / (p + q), -1 + 1e-6], [*honest, share])


@pytest.mark.parametrize("q", [0.01, 0.1, 0.18])
@lambdas
def test_the_constant_of_monna_is_sharp_and_grows_as_the_pivot_gets_lighter(
    lam: Fraction, q: float
) -> None:
    case, rule, constant = worst_for_monna(lam, q), MoNNA(float(lam)), pivot_bound(float(lam), q)
    assert 0.99 * constant <= ratio(rule, *case, lam, trusted=(0,)) <= constant * (1 + 1e-4)
    assert pivot_bound(float(lam), 1e-9) > 1e5 and bound_of(rule, float(lam)) is None


def test_a_pivot_that_lies_steers_alone() -> None:
    case, lam = column([9.0, 0.0, 0.0, 9.5], [0.2, 0.3, 0.3, 0.2]), Fraction(2, 5)
    assert float(MoNNA(0.4, pivot=0)(*case)) > 6.0
    assert float(MoNNA(0.4, pivot=1)(*case)) == 0.0
    assert ratio(MoNNA(0.4, pivot=0), *case, lam) == math.inf
    assert ratio(MoNNA(0.4, pivot=1), *case, lam, trusted=(1,)) <= pivot_bound(0.4, 0.3)


@pytest.mark.parametrize("pivot", [3, 7, 10**9])
@given(drawn=with_share())
def test_without_its_pivot_monna_is_ctma_over_the_median(
    pivot: int, drawn: tuple[Weighted, Fraction]
) -> None:
    (rows, weights), lam = drawn
    rows, weights = rows[:3], weights[:3] + 1
    expected = CTMA(CoordinateWiseMedian(), float(lam))(rows, weights)
    assert torch.equal(MoNNA(float(lam), pivot)(rows, weights), expected)
    blind = torch.cat([rows, torch.full_like(rows[:1], torch.nan)])
    beside = torch.cat([weights, torch.zeros(1, dtype=torch.int64)])
    absent = MoNNA(float(lam), len(rows))(blind, beside)
    torch.testing.assert_close(absent, expected, rtol=1e-12, atol=1e-12)


def test_the_order_of_the_rows_says_who_is_trusted() -> None:
    rows, weights = torch.tensor([[0.0], [1.0], [9.0], [10.0]]), torch.tensor([1, 1, 1, 1])
    rule = MoNNA(0.25, pivot=1)
    assert not {Law.PERMUTATION, Law.COPIES} & laws_of(rule)
    assert float(rule(rows, weights)) == pytest.approx(10 / 3)
    assert float(rule(rows.flip(0), weights)) == pytest.approx(20 / 3)
    # A second copy of the row before the pivot takes its place.
    twice, later = torch.tensor([2, 1, 1, 1]), torch.tensor([[0.0], [5.0], [6.0], [7.0]])
    assert float(rule(later, twice)) == pytest.approx(4.8)
    copies = later.repeat_interleave(twice, dim=0)
    assert float(rule(copies, torch.ones(5))) == pytest.approx(9.5 / 3.75)


@pytest.mark.parametrize("pivot", [-1, 0.0, True, None])
def test_a_pivot_that_is_no_index_is_refused(pivot: object) -> None:
    with pytest.raises(ConfigError, match="pivot="):
        MoNNA(0.2, pivot)  # type: ignore[arg-type]


# --- centred clipping --------------------------------------------------------------------------
def published_clipping(case: Weighted, lam: float, radius: float | None, steps: int) -> np.ndarray:
    """The loop of the paper in long double, row by row, from the median."""
    rows, weights = case.rows.numpy().astype(np.longdouble), case.weights.numpy()
    v = reference.cwmed(case.rows.numpy(), weights)
    for _ in range(steps):
        away = [math.dist(row, v) for row in rows]
        held = sorted(zip(away, weights.tolist(), strict=True))
        total, tau = 0, 0.0
        for distance, weight in held:
            if total < (1 - GOLDEN * lam) * weights.sum() * (1 - 1e-9):
                total, tau = total + weight, distance if weight else tau
        tau = tau if radius is None else radius
        shorter = [1.0 if a <= tau else tau / a for a in away]
        moves = zip(weights, shorter, rows, strict=True)
        v = v + sum(w * f * (row - v) for w, f, row in moves) / weights.sum()
    return v.astype(float)


@pytest.mark.parametrize("radius", [None, 0.5, 3.0])
@pytest.mark.parametrize("steps", [1, 3])
@given(drawn=with_share())
def test_clipping_agrees_with_the_loop_of_the_paper(
    radius: float | None, steps: int, drawn: tuple[Weighted, Fraction]
) -> None:
    case, lam = drawn
    rule = CenteredClipping(float(lam), radius, steps)
    expected = torch.from_numpy(published_clipping(case, float(lam), radius, steps))
    torch.testing.assert_close(rule(*case), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5])
@given(drawn=attacked())
def test_clipping_keeps_its_constant_for_every_admissible_set(
    steps: int, drawn: tuple[Weighted, Fraction]
) -> None:
    case, lam = drawn
    constant = bound_of(CenteredClipping(float(lam), iterations=steps), float(lam))
    assert constant is not None
    rule = CenteredClipping(float(lam), iterations=steps)
    assert ratio(rule, *case, lam) <= constant * (1 + 1e-9)


@pytest.mark.parametrize("lam", [Fraction(1, 50), Fraction(1, 10), Fraction(1, 4)], ids=str)
def test_no_constant_of_clipping_is_below_two_thirds_of_ours(lam: Fraction) -> None:
    share, offset = float(lam), 1e-5
    beyond = GOLDEN * share - offset
    case = column([0.0, 0.0, 1.0], [1 - share - beyond, share, beyond])
    found = ratio(CenteredClipping(share), *case, lam)
    expected = GOLDEN * share / (1 - GOLDEN**2 * share)
    assert found == pytest.approx(expected, rel=5e-3)
    assert 2 / 3 * centered_clipping_bound(share) < found < centered_clipping_bound(share)


def test_the_constant_of_clipping_goes_to_zero_with_the_share() -> None:
    assert CenteredClipping(0.0).bound(0.0) == 0.0 and centered_clipping_bound(1e-6) < 1.7e-6
    for lam in map(float, LAMBDAS):
        assert centered_clipping_bound(lam) < 4 * lam / ((1 - lam) * (1 - 2 * lam))
        assert centered_clipping_bound(lam) < 1.72 / (1 - 2 * lam)
    assert centered_clipping_bound(0.3) < 2.5 and centered_clipping_bound(
        0.3, 2
    ) < centered_clipping_bound(0.3)
    assert CenteredClipping(0.3).bound(0.31) is None
    assert CenteredClipping(0.3).bound(0.1) == centered_clipping_bound(0.3)


@given(case=st.deferred(lambda: adversarial_rows(Fraction(1, 4))))
def test_without_liars_one_step_of_clipping_is_the_mean(case: Weighted) -> None:
    torch.testing.assert_close(CenteredClipping(0.0)(*case), Mean()(*case), rtol=1e-9, atol=1e-9)


def clipped_where_liars_begin(rows: Tensor, weights: Tensor) -> Tensor:
    """Clips to the radius that holds 3/4 of the weight: one far honest row sets it."""
    v = CoordinateWiseMedian()(rows, weights)
    away = (rows - v).norm(dim=1)
    held = weights[away.argsort()].cumsum(0)
    tau = away.sort().values[int((4 * held < 3 * weights.sum()).sum())]
    factor = weights * (tau / away).nan_to_num(1.0).clamp(max=1.0)
    return v + factor @ (rows - v) / weights.sum()


def test_a_radius_that_few_honest_rows_set_has_no_constant() -> None:
    lam = Fraction(1, 4)
    for few in (1e-2, 1e-4):
        case = column([0.0, 1.0, 1.0 + 1e-6], [0.75 - few, few, 0.25])
        assert ratio(clipped_where_liars_begin, *case, lam) > 0.02 / few
        assert ratio(CenteredClipping(0.25), *case, lam) <= centered_clipping_bound(0.25)


@pytest.mark.parametrize("radius", [1e-3, 1.0, 1e3])
def test_a_fixed_radius_gives_a_liar_as_much(radius: float) -> None:
    rule, case = CenteredClipping(0.2, radius), column([0.0, 1e9], [0.8, 0.2])
    assert float(rule(*case)) == pytest.approx(0.2 * radius)
    assert ratio(rule, *case, Fraction(1, 5)) == math.inf and rule.bound(0.2) is None
    assert float(CenteredClipping(0.2)(*case)) == 0.0


def test_a_fixed_radius_does_not_scale_with_the_rows() -> None:
    case = column([0.0, 1.0], [0.8, 0.2])
    rule = CenteredClipping(0.2, radius=1.0)
    assert laws_of(rule) == set(Law) - {Law.SCALE} and laws_of(CenteredClipping(0.2)) == set(Law)
    assert float(rule(2 * case.rows, case.weights)) == float(rule(*case)) > 0


@given(lam=shares())
def test_a_far_row_costs_clipping_no_digit(lam: Fraction) -> None:
    generator = torch.Generator().manual_seed(3)
    near, weights = torch.randn(8, 5, generator=generator).double(), torch.ones(9)
    far = [torch.cat([near, torch.full((1, 5), size).double()]) for size in (1e6, 1e20)]
    rule = CenteredClipping(max(0.1, float(lam)), iterations=2)
    first, second = (rule(rows, weights) for rows in far)
    # A liar's direction is its own; from 1e6 on it is the same for rows of size 1.
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    assert bool((second.abs() <= near.abs().max()).all())


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"byz_fraction": 0.5}, "byz_fraction"),
        ({"byz_fraction": 0.2, "radius": 0.0}, "radius"),
        ({"byz_fraction": 0.2, "radius": math.inf}, "radius"),
        ({"byz_fraction": 0.2, "iterations": 0}, "iterations"),
        ({"byz_fraction": 0.2, "iterations": 1.5}, "iterations"),
    ],
)
def test_settings_of_clipping_out_of_range_are_named(
    settings: dict[str, float], names: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{names}="):
        CenteredClipping(**settings)  # type: ignore[arg-type]


def test_settings_can_be_written_behind_the_name() -> None:
    assert build("monna(pivot=2)", 0.2) == MoNNA(0.2, pivot=2)
    expected = CenteredClipping(0.2, radius=0.5, iterations=3)
    assert build("centered_clipping(radius=0.5, iterations=3)", 0.2) == expected
