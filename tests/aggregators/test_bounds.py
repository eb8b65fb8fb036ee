"""The weighted-robustness inequality, over every admissible set of honest rows."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings, target
from torch import Tensor

from flwr_byzasync.aggregators import (
    CTMA,
    RFA,
    Aggregator,
    CoordinateWiseMedian,
    GeometricMedian,
    Mean,
    build,
)
from flwr_byzasync.aggregators.rule import bound_of
from tests.generators import Weighted, every_rule, with_share

BOUNDED = [name for name, rule in every_rule().items() if bound_of(rule, 0.1) is not None]
MEDIANS = [CoordinateWiseMedian(), GeometricMedian()]


def sharp(lam: Fraction) -> float:
    return float(1 / (1 - 2 * lam))


def admissible(weights: list[int], lam: Fraction) -> np.ndarray:
    """Every set G of rows with Σ_G s_i >= (1 − λ) S, decided in exact arithmetic: (k, m)."""
    m, total = len(weights), sum(weights)
    sets = [[mask >> i & 1 for i in range(m)] for mask in range(1, 2**m)]
    held = [sum(s for s, inside in zip(weights, g, strict=True) if inside) for g in sets]
    return np.array([g for g, h in zip(sets, held, strict=True) if h >= (1 - lam) * total])


def worst_excess(rule: Aggregator, case: Weighted, constant: float, lam: Fraction) -> float:
    """The largest ‖A − x̄_G‖ / (√c ρ_G + rounding of the rows of G) over every admissible G."""
    rows = case.rows.numpy().astype(np.longdouble)
    result = rule(*case).numpy().astype(np.longdouble)
    mass = admissible(case.weights.tolist(), lam) * case.weights.numpy().astype(np.longdouble)
    share = mass / mass.sum(axis=1, keepdims=True)
    centre = share @ rows
    squares = ((rows[None] - centre[:, None]) ** 2).sum(axis=2)
    rho = np.sqrt((share * squares).sum(axis=1))
    distance = np.sqrt(((result - centre) ** 2).sum(axis=1))
    largest = ((share > 0) * np.sqrt((rows**2).sum(axis=1))).max(axis=1)
    allowed = np.sqrt(np.longdouble(constant)) * rho * (1 + 1e-9) + 1e-14 * largest
    if not np.isfinite(distance).all():
        return float("inf")
    return float(np.max(distance / np.where(allowed > 0, allowed, 5e-324)))


def check_bound(rule: Aggregator, case: Weighted, constant: float, lam: Fraction) -> float:
    """Assert ‖A − x̄_G‖² <= c ρ² for every admissible G; return how near it came."""
    excess = worst_excess(rule, case, constant, lam)
    assert excess <= 1.0, f"{excess} times what c = {constant} allows"
    return excess


@pytest.mark.parametrize("name", BOUNDED)
@given(drawn=with_share())
def test_a_declared_bound_holds_for_every_admissible_set(
    name: str, drawn: tuple[Weighted, Fraction]
) -> None:
    case, lam = drawn
    rule = build(name, byz_fraction=float(lam))
    constant = bound_of(rule, float(lam))
    assert constant is not None
    target(check_bound(rule, case, constant, lam))


@pytest.mark.parametrize("rule", MEDIANS, ids=repr)
@given(drawn=with_share())
def test_medians_keep_the_sharp_constant(
    rule: Aggregator, drawn: tuple[Weighted, Fraction]
) -> None:
    case, lam = drawn
    assert bound_of(rule, float(lam)) == pytest.approx(sharp(lam), rel=1e-12)
    target(check_bound(rule, case, sharp(lam), lam))


@pytest.mark.parametrize("share", [Fraction(0), Fraction(1, 20), Fraction(3, 10)])
@given(drawn=with_share())
@settings(max_examples=20)
def test_ctma_keeps_its_bound_where_liars_hold_less_than_it_expects(
    share: Fraction, drawn: tuple[Weighted, Fraction]
) -> None:
    rule = CTMA(GeometricMedian(), byz_fraction=0.3)
    constant = bound_of(rule, float(share))
    assert constant == bound_of(rule, 0.3) and constant is not None
    check_bound(rule, drawn[0], constant, share)


def test_ctma_promises_nothing_where_liars_hold_more_than_it_expects() -> None:
    assert bound_of(CTMA(GeometricMedian(), byz_fraction=0.3), 0.31) is None


def test_ctma_over_a_base_without_a_bound_has_none() -> None:
    assert bound_of(CTMA(RFA(), byz_fraction=0.3), 0.3) is None


# --- the constant cannot be lower --------------------------------------------------------------
def witness(lam: Fraction, half: int = 10_000) -> Weighted:
    """All but half of the weight at 0, the honest rest and every liar at 1: the median is 1."""
    liars = int(2 * half * lam)
    rows = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
    return Weighted(rows, torch.tensor([half - 1, half + 1 - liars, liars]))


LAMBDAS = [Fraction(1, 20), Fraction(1, 10), Fraction(1, 4), Fraction(2, 5), Fraction(9, 20)]


@pytest.mark.parametrize("lam", LAMBDAS, ids=str)
@pytest.mark.parametrize("rule", MEDIANS, ids=repr)
def test_the_constant_of_the_medians_is_sharp(rule: Aggregator, lam: Fraction) -> None:
    case = witness(lam)
    check_bound(rule, case, sharp(lam), lam)
    with pytest.raises(AssertionError):
        check_bound(rule, case, 0.99 * sharp(lam), lam)


# --- rules that must fail ----------------------------------------------------------------------
def three_and_one(far: float, liars: int = 1) -> Weighted:
    rows = torch.tensor([[0.0], [0.0], [0.0], [far]], dtype=torch.float64)
    return Weighted(rows, torch.tensor([1, 1, 1, liars]))


@pytest.mark.parametrize("lam", [Fraction(1, 4), Fraction(9, 20)], ids=str)
def test_one_liar_breaks_every_constant_of_the_mean(lam: Fraction) -> None:
    for constant in (sharp(lam), 1e6, 1e12):
        with pytest.raises(AssertionError):
            check_bound(Mean(), three_and_one(1.0), constant, lam)
    for median in MEDIANS:
        check_bound(median, three_and_one(1.0), sharp(lam), lam)


@pytest.mark.parametrize("far", [1.0, 1e6, 1e90])
def test_one_far_row_breaks_every_constant_of_three_rfa_steps(far: float) -> None:
    case, lam = three_and_one(far, liars=2), Fraction(2, 5)
    assert float(RFA()(*case)) == pytest.approx(0.165 * far, rel=0.01)
    with pytest.raises(AssertionError):
        check_bound(RFA(), case, 1e12, lam)
    for median in MEDIANS:
        check_bound(median, case, sharp(lam), lam)


def median_without_weights(rows: Tensor, weights: Tensor) -> Tensor:
    return CoordinateWiseMedian()(rows, (weights > 0).to(torch.int64))


def weiszfeld_smoothed_by_the_farthest(rows: Tensor, weights: Tensor) -> Tensor:
    """Geometric median but for a smoothing that one outlier sets."""
    mass, z = weights.double(), CoordinateWiseMedian()(rows, weights)
    for _ in range(200):
        distance = (rows - z).norm(dim=1)
        pull = mass / distance.clamp(min=max(1e-2 * float(distance.max()), 1e-300))
        z = pull @ rows / pull.sum()
    return z


def lower_half(rows: Tensor, weights: Tensor) -> Tensor:
    """Trims from one side only."""
    near = rows.norm(dim=1) <= CoordinateWiseMedian()(rows.norm(dim=1, keepdim=True), weights)
    return Mean()(rows, weights * near)


@pytest.mark.parametrize(
    "broken",
    [Mean(), RFA(), median_without_weights, weiszfeld_smoothed_by_the_farthest, lower_half],
    ids=["mean", "rfa", "no weights", "farthest", "one side"],
)
def test_the_search_catches_a_broken_rule(broken: Aggregator) -> None:
    quick = settings(max_examples=500, derandomize=True, database=None, phases=[Phase.generate])

    def caught(drawn: tuple[Weighted, Fraction]) -> bool:
        return worst_excess(broken, drawn[0], sharp(drawn[1]), drawn[1]) > 1.01

    case, lam = find(with_share(), caught, settings=quick)
    with pytest.raises(AssertionError):
        check_bound(broken, case, sharp(lam), lam)


def test_every_set_that_weighs_enough_is_admissible_and_no_other() -> None:
    sets = admissible([3, 1, 1], Fraction(1, 5))
    assert sorted(sets.tolist()) == [[1, 0, 1], [1, 1, 0], [1, 1, 1]]
    assert len(admissible([1] * 10, Fraction(1, 10))) == 11
