"""The weighted-robustness inequality, over every admissible set of honest rows."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from flwr_byzasync.aggregators import (
    CTMA,
    RFA,
    Aggregator,
    CoordinateWiseMedian,
    GeometricMedian,
    Mean,
)
from flwr_byzasync.aggregators.rule import bound_of
from flwr_byzasync.audit.inequality import exact_share, worst
from flwr_byzasync.testing import LawError, Weighted, admissible, ratio
from flwr_byzasync.testing.adversarial_cases import BoundCase
from flwr_byzasync.testing.conformance import check_bound, check_inequality, claim_of
from tests.generators import every_rule, search

MEDIANS = [CoordinateWiseMedian(), GeometricMedian()]
SHARES = (0.05, 0.2, 0.4)
BOUNDED = [
    pytest.param(rule, lam, id=f"{name} at {lam}", marks=[] if lam == 0.2 else pytest.mark.slow)
    for lam in SHARES
    for name, rule in every_rule(lam).items()
    if bound_of(rule, lam) is not None
]


def sharp(lam: Fraction) -> float:
    return float(1 / (1 - 2 * lam))


def check(rule: Aggregator, case: Weighted, constant: float, lam: Fraction) -> None:
    """Assert ‖A − x̄_G‖² <= c ρ² for every admissible G."""
    check_inequality(claim_of(rule, bound=lambda _: constant), BoundCase(case, lam))


@pytest.mark.parametrize(("rule", "lam"), BOUNDED)
def test_a_declared_bound_holds_for_every_admissible_set(rule: Aggregator, lam: float) -> None:
    check_bound(claim_of(rule), exact_share(lam), search(part=len(SHARES)))


@pytest.mark.parametrize("rule", MEDIANS, ids=repr)
def test_medians_keep_the_sharp_constant(rule: Aggregator) -> None:
    for lam in map(Fraction, ("1/20", "1/3", "9/20")):
        assert bound_of(rule, float(lam)) == pytest.approx(sharp(lam), rel=1e-12)
    claim = claim_of(rule, bound=lambda lam: 1 / (1 - 2 * lam))
    check_bound(claim, Fraction(9, 20), search())


@pytest.mark.parametrize("share", [Fraction(0), Fraction(1, 20), Fraction(3, 10)])
def test_ctma_keeps_its_bound_where_liars_hold_less_than_it_expects(share: Fraction) -> None:
    rule = CTMA(GeometricMedian(), byz_fraction=0.3)
    constant = bound_of(rule, float(share))
    assert constant == bound_of(rule, 0.3) and constant is not None
    check_bound(claim_of(rule), share, search(part=5))


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
    check(rule, case, sharp(lam), lam)
    with pytest.raises(LawError):
        check(rule, case, 0.99 * sharp(lam), lam)


# --- rules that must fail ----------------------------------------------------------------------
def three_and_one(far: float, liars: int = 1) -> Weighted:
    rows = torch.tensor([[0.0], [0.0], [0.0], [far]], dtype=torch.float64)
    return Weighted(rows, torch.tensor([1, 1, 1, liars]))


@pytest.mark.parametrize("lam", [Fraction(1, 20), Fraction(1, 4), Fraction(2, 5)], ids=str)
@pytest.mark.parametrize("beyond", [1.0, 1.5, 30.0], ids=str)
def test_the_constant_of_ctma_over_any_base_is_sharp_knowing_the_base_s_alone(
    lam: Fraction, beyond: float
) -> None:
    """docs/theory/ctma.md: a base that is off by all that its constant allows."""

    class Zero:
        def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
            return torch.zeros_like(rows[0])

        def bound(self, _: float) -> float:
            return constant

    constant = beyond * float(lam / (1 - 2 * lam))
    p, t = float(lam / (1 - lam)), constant**0.5
    a = ((1 - p) / p) ** 0.5
    places = [[t + a], [t - p * a / (1 - p)], [-(t + a) * (1 - 1e-9)]]
    rows = torch.tensor(places, dtype=torch.float64)
    weights = torch.tensor([lam.numerator, lam.denominator - 2 * lam.numerator, lam.numerator])
    rule = CTMA(Zero(), float(lam))
    found = worst(rule(rows, weights), rows, weights, lam).ratio
    bound = rule.bound(float(lam))
    assert bound is not None and 0.9999 * bound <= found <= bound * (1 + 1e-9)
    assert bound <= 4 * float(lam / (1 - lam)) * (1 + constant) * (1 + 1e-9)


@pytest.mark.parametrize("lam", [Fraction(1, 4), Fraction(9, 20)], ids=str)
def test_one_liar_breaks_every_constant_of_the_mean(lam: Fraction) -> None:
    for constant in (sharp(lam), 1e6, 1e12):
        with pytest.raises(LawError):
            check(Mean(), three_and_one(1.0), constant, lam)
    for median in MEDIANS:
        check(median, three_and_one(1.0), sharp(lam), lam)


@pytest.mark.parametrize("far", [1.0, 1e6, 1e90])
def test_one_far_row_breaks_every_constant_of_three_rfa_steps(far: float) -> None:
    case, lam = three_and_one(far, liars=2), Fraction(2, 5)
    assert float(RFA()(*case)) == pytest.approx(0.165 * far, rel=0.01)
    with pytest.raises(LawError):
        check(RFA(), case, 1e12, lam)
    for median in MEDIANS:
        check(median, case, sharp(lam), lam)


# --- what is admissible, and what counts as rounding -------------------------------------------
def test_every_set_that_weighs_enough_is_admissible_and_no_other() -> None:
    sets = admissible([3, 1, 1], Fraction(1, 5))
    assert sorted(sets.tolist()) == [[1, 0, 1], [1, 1, 0], [1, 1, 1]]
    assert len(admissible([1] * 10, Fraction(1, 10))) == 11
    assert admissible([1, 2, 0], 0.4).tolist() == [[False, True, False], [True, True, False]]


def test_a_share_is_the_decimal_that_is_written() -> None:
    # In binary 0.3 is a little less than 3/10, and seven of ten would not be enough.
    assert len(admissible([1] * 10, 0.3)) == 1 + 10 + 45 + 120
    assert len(admissible([0.1] * 10, 0.3)) == 1 + 10 + 45 + 120


def test_weights_beyond_float64_are_compared_exactly() -> None:
    half = 2**70
    assert admissible([half, half - 1], 0.49).tolist() == [[True, True]]
    sets = admissible([3 * half + 1, 2 * half - 1, 0], Fraction(2, 5)).tolist()
    assert sets == [[True, False, False], [True, True, False]]
    assert len(admissible([3 * half - 1, 2 * half + 1], Fraction(2, 5))) == 1


def test_a_trusted_row_is_in_every_set_and_none_holds_an_absent_one() -> None:
    assert admissible([1, 1, 1], Fraction(2, 5), trusted=(0,))[:, 0].all()
    assert len(admissible([0, 1, 1], Fraction(2, 5), trusted=(0,))) == 0
    assert len(admissible([1, 1, 1], Fraction(2, 5), trusted=(5,))) == 0


def test_more_rows_than_sets_can_be_listed_for_are_refused() -> None:
    with pytest.raises(ValueError, match="17 rows have positive weight"):
        admissible([1] * 17, 0.1)
    assert len(admissible([1] * 4 + [0] * 17, 0.25)) == 5


def test_rows_of_weight_zero_may_hold_anything() -> None:
    rows = torch.tensor([[0.0], [2.0], [torch.nan]])
    assert ratio(Mean(), rows, torch.tensor([1, 1, 0]), 0.1) == 0.0


def test_one_rounding_of_the_result_is_forgiven_and_a_real_difference_is_not() -> None:
    rows, weights = torch.full((3, 1), 500.1), torch.ones(3)
    unit = 2.0**-24 * 500
    for off, expected in ((unit, 0.0), (20 * unit, float("inf"))):
        found = worst(torch.tensor([500.1 + off]), rows, weights, 0.1)
        assert found.ratio == expected and found.honest
    assert worst(torch.tensor([torch.nan]), rows, weights, 0.1).ratio == float("inf")


@pytest.mark.parametrize("rule", [Mean(), *MEDIANS], ids=repr)
def test_the_ratio_does_not_depend_on_where_and_how_large_the_rows_are(rule: Aggregator) -> None:
    rows = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0], [9.0, 9.0]], dtype=torch.float64)
    weights, lam = torch.tensor([3, 2, 2, 1]), Fraction(1, 4)
    here = ratio(rule, rows, weights, lam)
    assert here > 0.1
    for moved in (rows * 1e60, rows + 300.0, rows / 1e60):
        assert ratio(rule, moved, weights, lam) == pytest.approx(here, rel=1e-9)
