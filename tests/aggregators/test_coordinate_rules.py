"""Trimmed mean and mean around the median: formulas, constants, and witnesses near them."""

from collections.abc import Callable
from fractions import Fraction
from statistics import fmean, median

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync import ConfigError
from flwr_byzasync.aggregators import (
    CTMA,
    Aggregator,
    CoordinateWiseMedian,
    GeometricMedian,
    Meamed,
    Mean,
    TrimmedMean,
)
from flwr_byzasync.aggregators.rule import bound_of
from flwr_byzasync.testing import Weighted, adversarial_rows, ratio, shares, weighted_rows

RULES = (TrimmedMean, Meamed)
LAMBDAS = [Fraction(1, 20), Fraction(1, 10), Fraction(1, 4), Fraction(2, 5), Fraction(9, 20)]
either = pytest.mark.parametrize("made", RULES)


def column(values: list[float], weights: list[float]) -> Weighted:
    """Rows of one coordinate; weights that are shares of 10⁶."""
    counts = [round(1_000_000 * weight) for weight in weights]
    return Weighted(torch.tensor(values, dtype=torch.float64).unsqueeze(1), torch.tensor(counts))


# --- the published formulas, in exact arithmetic on copies -------------------------------------
def in_copies(case: Weighted, lam: Fraction) -> tuple[list[list[Fraction]], int]:
    """Each row so often that all weigh the same and f = λn of the n is an integer."""
    copies: list[list[Fraction]] = []
    for row, weight in zip(case.rows.tolist(), case.weights.tolist(), strict=True):
        copies += [[Fraction(value) for value in row]] * (weight * lam.denominator)
    return copies, int(lam * len(copies))


def mean_of_nearest(
    copies: list[list[Fraction]], distances: list[Fraction], keep: int
) -> list[float]:
    """Mean of the `keep` copies of smallest distance, over all ways to break ties."""
    cut = sorted(distances)[keep - 1]
    inside = sum(distance < cut for distance in distances)
    part = Fraction(keep - inside, distances.count(cut))
    held = [Fraction(d < cut) + part * (d == cut) for d in distances]
    columns = zip(*copies, strict=True)
    return [
        float(sum(h * x for h, x in zip(held, values, strict=True)) / keep) for values in columns
    ]


def published_trimmed_mean(copies: list[list[Fraction]], f: int) -> list[float]:
    return [fmean(sorted(v)[f : len(v) - f]) for v in zip(*copies, strict=True)]


def published_meamed(copies: list[list[Fraction]], f: int) -> list[float]:
    result = []
    for values in zip(*copies, strict=True):
        middle = median(values)
        distances = [abs(value - middle) for value in values]
        result += mean_of_nearest([[v] for v in values], distances, len(values) - f)
    return result


@st.composite
def with_share(draw: st.DrawFn) -> tuple[Weighted, Fraction]:
    case = draw(weighted_rows("integers"))
    return case, draw(shares(case.weights))


@pytest.mark.parametrize(
    ("made", "published"), [(TrimmedMean, published_trimmed_mean), (Meamed, published_meamed)]
)
@given(drawn=with_share())
def test_a_share_of_the_weight_means_as_many_copies(
    made: Callable[[float], Aggregator],
    published: Callable[[list[list[Fraction]], int], list[float]],
    drawn: tuple[Weighted, Fraction],
) -> None:
    case, lam = drawn
    expected = torch.tensor(published(*in_copies(case, lam)), dtype=torch.float64)
    torch.testing.assert_close(made(float(lam))(*case), expected, rtol=1e-9, atol=1e-9)


@given(drawn=with_share())
def test_meamed_is_ctma_in_each_coordinate_on_its_own(drawn: tuple[Weighted, Fraction]) -> None:
    (rows, weights), lam = drawn
    ctma = CTMA(CoordinateWiseMedian(), float(lam))
    expected = torch.cat([ctma(column, weights) for column in rows.split(1, dim=1)])
    torch.testing.assert_close(Meamed(float(lam))(rows, weights), expected, rtol=1e-12, atol=1e-12)


# --- the constants -----------------------------------------------------------------------------
@st.composite
def attacked(draw: st.DrawFn) -> tuple[Weighted, Fraction]:
    lam = draw(shares())
    rows = st.one_of(adversarial_rows(lam), weighted_rows("integers", "far", "floats"))
    return draw(rows), lam


@either
@given(drawn=attacked())
def test_the_constant_holds_for_every_admissible_set(
    made: type[TrimmedMean], drawn: tuple[Weighted, Fraction]
) -> None:
    case, lam = drawn
    rule = made(float(lam))
    constant = bound_of(rule, float(lam))
    assert constant is not None and ratio(rule, *case, lam) <= constant * (1 + 1e-9)


def two_sides(lam: Fraction) -> Weighted:
    """Any rows that hold a share λ may be the liars; no rule can distinguish them."""
    share = float(lam)
    return column([0.0, 0.0, 1.0], [1 - 2 * share, share, share])


def floor(lam: Fraction) -> float:
    return float(lam / (1 - 2 * lam))


@pytest.mark.parametrize("lam", LAMBDAS, ids=str)
def test_no_rule_has_a_smaller_constant_than_the_trimmed_mean(lam: Fraction) -> None:
    share = float(lam)
    assert bound_of(TrimmedMean(share), share) == pytest.approx(floor(lam), rel=1e-12)
    assert ratio(TrimmedMean(share), *two_sides(lam), lam) == pytest.approx(floor(lam), rel=1e-9)
    others = (Mean(), CoordinateWiseMedian(), GeometricMedian(), Meamed(share))
    for rule in (*others, CTMA(GeometricMedian(), share), lambda x, _: x.mean(dim=0)):
        assert ratio(rule, *two_sides(lam), lam) >= floor(lam) * (1 - 1e-9)


@pytest.mark.parametrize("lam", LAMBDAS, ids=str)
def test_the_constant_of_meamed_is_sharp(lam: Fraction) -> None:
    share, offset = float(lam), 1e-5
    half = 0.5 - share
    weights = [half + offset, half - offset, share, share]
    case = column([0.0, 2 * share, 1.0, -1.0 + 1e-6], weights)
    constant = bound_of(Meamed(share), share)
    assert constant is not None
    assert 0.99 * constant <= ratio(Meamed(share), *case, lam) <= constant


@either
def test_a_bound_covers_smaller_shares_and_no_larger_one(made: type[TrimmedMean]) -> None:
    rule = made(0.3)
    assert bound_of(rule, 0.1) == bound_of(rule, 0.3) and bound_of(rule, 0.31) is None
    assert bound_of(made(0.0), 0.0) == 0.0


def test_the_published_constant_of_the_trimmed_mean_is_six_times_ours_or_more() -> None:
    n, f = 10, 3
    published = TrimmedMean(f / n).published(f / n)
    assert published == pytest.approx(6 * f / (n - 2 * f) * (1 + f / (n - 2 * f)))
    assert published >= 6 * floor(Fraction(f, n)) and TrimmedMean(0.3).published(0.4) is None


# --- rules that must fail ----------------------------------------------------------------------
def trims_above_only(rows: Tensor, weights: Tensor) -> Tensor:
    """Cuts a quarter of the weight off the high end, none off the low one."""
    copies = rows.repeat_interleave(weights, dim=0).sort(dim=0).values
    return copies[: len(copies) - len(copies) // 4].mean(dim=0)


def without_weights(rows: Tensor, weights: Tensor) -> Tensor:
    return TrimmedMean(0.25)(rows, (weights > 0).to(torch.int64))


@pytest.mark.parametrize(
    ("broken", "liar", "counts"),
    [
        (trims_above_only, -1e6, [1, 1, 1, 1]),
        (without_weights, 1e6, [3, 3, 1, 1]),
        (Mean(), 1e6, [1, 1, 1, 1]),
        (TrimmedMean(0.2), 1e6, [1, 1, 1, 1]),
    ],
    ids=["one side", "no weights", "mean", "less than the liars hold"],
)
def test_the_search_refuses_a_rule_that_a_liar_moves(
    broken: Aggregator, liar: float, counts: list[int]
) -> None:
    lam = Fraction(1, 4)
    values = [0.0, 0.0, 1.0, liar] if len(set(counts)) == 1 else [0.0, 0.0, liar, liar]
    case = Weighted(torch.tensor(values, dtype=torch.float64)[:, None], torch.tensor(counts))
    assert ratio(broken, *case, lam) > 100 * floor(lam)
    assert ratio(TrimmedMean(0.25), *case, lam) <= floor(lam) * (1 + 1e-9)


# --- rounding ----------------------------------------------------------------------------------
@either
@pytest.mark.parametrize("far", [-1e90, 1e90])
def test_rounding_of_the_cut_keeps_no_part_of_a_liar(made: type[TrimmedMean], far: float) -> None:
    for n in range(3, 60):
        for f in range(1, (n + 1) // 2):
            values = torch.arange(float(n), dtype=torch.float64).unsqueeze(1)
            values[n - f :] = far
            result = made(f / n)(values, torch.full((n,), 0.1))
            assert 0.0 <= float(result) <= n - f, (n, f)


@either
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_far_from_the_origin_lose_no_digit(
    made: type[TrimmedMean], dtype: torch.dtype
) -> None:
    # 512 and multiples of 2⁻¹³ are exact in both dtypes.
    generator = torch.Generator().manual_seed(2)
    near = torch.randint(-40, 40, (9, 30), generator=generator) / 2**13
    weights, rule = torch.arange(1, 10), made(0.3)
    moved = rule.aggregate((near + 512).to(dtype), weights) - 512
    torch.testing.assert_close(moved, rule(near.double(), weights), rtol=0, atol=2e-13)


@either
@pytest.mark.parametrize("value", [0.5, -0.1, float("nan"), True, "0.2", None])
def test_a_share_that_is_not_in_range_is_refused(made: type[TrimmedMean], value: object) -> None:
    with pytest.raises(ConfigError, match="byz_fraction="):
        made(value)  # type: ignore[arg-type]
