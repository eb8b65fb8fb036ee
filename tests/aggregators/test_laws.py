"""Every law that a rule declares, over every rule; and what holds for all of them."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync.aggregators import Aggregator, CoordinateWiseMedian, Law, Mean, build
from flwr_byzasync.aggregators.rule import laws_of
from tests.generators import (
    Weighted,
    equal_rows,
    every_rule,
    far_rows,
    float_rows,
    permuted,
    scaled,
    translated,
    weighted,
)

RULES = every_rule()
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

every = pytest.mark.parametrize(
    "rule", [pytest.param(rule, id=name) for name, rule in RULES.items()]
)


def keeping(law: Law) -> pytest.MarkDecorator:
    """The rules that declare a law."""
    kept = [pytest.param(rule, id=n) for n, rule in RULES.items() if law in laws_of(rule)]
    return pytest.mark.parametrize("rule", kept)


def assert_near(actual: Tensor, expected: Tensor, rows: Tensor) -> None:
    """Equal to a billionth of how far the rows spread, and the rounding of the result."""
    spread = float((rows - rows[0]).abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-15, atol=1e-9 * spread)


# --- the laws, each once -----------------------------------------------------------------------
def check_copies(rule: Aggregator, case: Weighted) -> None:
    copies = case.rows.repeat_interleave(case.weights, dim=0)
    ones = torch.ones(len(copies), dtype=torch.int64)
    assert_near(rule(*case), rule(copies, ones), case.rows)


def check_permutation(rule: Aggregator, case: tuple[Weighted, list[int]]) -> None:
    (rows, weights), order = case
    assert_near(rule(rows[order], weights[order]), rule(rows, weights), rows)


def check_translation(rule: Aggregator, case: tuple[Weighted, Tensor]) -> None:
    (rows, weights), vector = case
    assert_near(rule(rows + vector, weights), rule(rows, weights) + vector, rows)


def check_scale(rule: Aggregator, case: tuple[Weighted, float]) -> None:
    (rows, weights), factor = case
    assert_near(rule(rows * factor, weights), rule(rows, weights) * factor, rows * factor)


def check_weight_scale(rule: Aggregator, case: tuple[Weighted, float]) -> None:
    (rows, weights), factor = case
    assert_near(rule(rows, weights * factor), rule(rows, weights), rows)
    assert_near(rule(rows, weights * 3), rule(rows, weights), rows)


def check_agreement(rule: Aggregator, case: Weighted) -> None:
    assert torch.equal(rule(*case), case.rows[0])


def check_hull(rule: Aggregator, case: Weighted) -> None:
    rows = case.rows[case.weights > 0]
    low, high = rows.amin(dim=0), rows.amax(dim=0)
    rounding = 1e-15 * rows.abs().amax(dim=0)
    result = rule(*case)
    assert bool((result >= low - rounding).all() and (result <= high + rounding).all())


either = st.one_of(weighted(), weighted(far_rows), weighted(float_rows))

CHECKS: dict[Law, tuple[Callable[[Aggregator, Any], None], st.SearchStrategy[Any]]] = {
    Law.COPIES: (check_copies, weighted()),
    Law.PERMUTATION: (check_permutation, permuted()),
    Law.TRANSLATION: (check_translation, translated()),
    Law.SCALE: (check_scale, scaled()),
    Law.WEIGHT_SCALE: (check_weight_scale, scaled()),
    Law.AGREEMENT: (check_agreement, equal_rows()),
    Law.HULL: (check_hull, either),
}


@keeping(Law.COPIES)
@given(case=weighted())
def test_an_integer_weight_means_copies(rule: Aggregator, case: Weighted) -> None:
    check_copies(rule, case)


@keeping(Law.PERMUTATION)
@given(case=permuted())
def test_the_order_of_the_rows_does_not_matter(
    rule: Aggregator, case: tuple[Weighted, list[int]]
) -> None:
    check_permutation(rule, case)


@keeping(Law.TRANSLATION)
@given(case=translated())
def test_moving_all_rows_moves_the_result(rule: Aggregator, case: tuple[Weighted, Tensor]) -> None:
    check_translation(rule, case)


@keeping(Law.SCALE)
@given(case=scaled())
def test_scaling_all_rows_scales_the_result(rule: Aggregator, case: tuple[Weighted, float]) -> None:
    check_scale(rule, case)


@keeping(Law.WEIGHT_SCALE)
@given(case=scaled())
def test_only_the_proportions_of_the_weights_matter(
    rule: Aggregator, case: tuple[Weighted, float]
) -> None:
    check_weight_scale(rule, case)


@keeping(Law.AGREEMENT)
@given(case=equal_rows())
def test_rows_that_are_all_equal_give_that_row(rule: Aggregator, case: Weighted) -> None:
    check_agreement(rule, case)


@keeping(Law.HULL)
@given(case=either)
def test_each_coordinate_lies_among_those_of_the_rows(rule: Aggregator, case: Weighted) -> None:
    check_hull(rule, case)


# --- the laws can be refuted -------------------------------------------------------------------
BROKEN: dict[Law, Aggregator] = {
    Law.COPIES: lambda x, w: x[w > 0].mean(dim=0),
    Law.PERMUTATION: lambda x, _: x[0].clone(),
    Law.TRANSLATION: lambda x, w: Mean()(x, w) * 0.9,
    Law.SCALE: lambda x, w: Mean()(x.clamp(-2.0, 2.0), w),
    Law.WEIGHT_SCALE: lambda x, w: w.double() @ x / (w.sum() + 1.0),
    Law.AGREEMENT: lambda x, w: Mean()(x, w) * 0.9,
    Law.HULL: lambda x, w: 2.0 * x.amax(dim=0) - Mean()(x, w),
}


def fails(check: Callable[[Aggregator, Any], None], rule: Aggregator, case: object) -> bool:
    """Whether a check finds fault with a rule."""
    try:
        check(rule, case)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("law", Law)
def test_a_rule_that_breaks_the_law_is_caught(law: Law) -> None:
    check, cases = CHECKS[law]
    quick = settings(max_examples=200, derandomize=True, database=None, phases=[Phase.generate])
    case = find(cases, lambda case: fails(check, BROKEN[law], case), settings=quick)
    assert fails(check, BROKEN[law], case) and not fails(check, Mean(), case)


def of(rows: list[list[float]], weights: list[int]) -> Weighted:
    return Weighted(torch.tensor(rows, dtype=torch.float64), torch.tensor(weights))


UNDECLARED = [
    # nu = 1e-6 is a length: rows closer than that are averaged, the same rows apart are not.
    ("rfa", Law.SCALE, (of([[0.0], [0.0], [1e-7]], [1, 1, 1]), 2.0**30)),
    ("ctma(rfa)", Law.SCALE, (of([[0.0], [-3e-8], [3e-8], [4e-8]], [3, 1, 1, 1]), 2.0**30)),
    ("cwmed-unweighted", Law.COPIES, of([[0.0], [1.0]], [1, 3])),
    ("ctma(mean)-unweighted", Law.COPIES, of([[0.0], [1.0]], [1, 3])),
]


@pytest.mark.parametrize(("name", "law", "case"), UNDECLARED)
def test_a_law_that_is_not_declared_does_not_hold(name: str, law: Law, case: Any) -> None:
    rule = build(name, byz_fraction=0.25)
    assert law not in laws_of(rule)
    with pytest.raises(AssertionError):
        CHECKS[law][0](rule, case)


def test_a_composition_keeps_only_what_its_base_keeps() -> None:
    assert laws_of(build("ctma(rfa)-unweighted", 0.2)) == set(Law) - {Law.SCALE, Law.COPIES}


def test_a_third_party_function_declares_no_law() -> None:
    assert laws_of(lambda x, _: x[0]) == frozenset()


# --- what holds for every rule -----------------------------------------------------------------
@every
@given(case=either)
def test_inputs_are_not_written_and_results_share_no_memory(
    rule: Aggregator, case: Weighted
) -> None:
    before = Weighted(*(t.clone() for t in case))
    rule(*case).fill_(7.0)
    assert torch.equal(before.rows, case.rows) and torch.equal(before.weights, case.weights)


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_and_device_are_the_rows(rule: Aggregator, dtype: torch.dtype) -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]], dtype=dtype)
    result = rule(rows, torch.tensor([1, 2, 1]))
    assert (result.dtype, result.device, result.shape) == (dtype, rows.device, (2,))
    assert bool(result.isfinite().all())


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_row_is_the_result(rule: Aggregator, dtype: torch.dtype) -> None:
    row = torch.tensor([[0.1, -3e4, 1e-7]], dtype=dtype)
    assert torch.equal(rule(row, torch.tensor([0.3])), row[0])


@every
@pytest.mark.parametrize("rest", [0.0, 1e30, torch.nan, torch.inf, -torch.inf])
@given(case=weighted())
@settings(max_examples=15)
def test_rows_of_weight_zero_are_as_if_absent(
    rule: Aggregator, rest: float, case: Weighted
) -> None:
    extra = torch.full_like(case.rows, rest)
    rows = torch.cat([extra, case.rows, extra])
    weights = torch.cat([0 * case.weights, case.weights, 0 * case.weights])
    assert_near(rule(rows, weights), rule(*case), case.rows)


@every
@given(case=weighted())
def test_integer_and_floating_weights_of_one_value_agree(rule: Aggregator, case: Weighted) -> None:
    for dtype in (torch.float32, torch.uint8):
        assert_near(rule(case.rows, case.weights.to(dtype)), rule(*case), case.rows)


@every
def test_rows_of_zeros_give_zeros(rule: Aggregator) -> None:
    assert torch.equal(rule(torch.zeros(4, 3), torch.tensor([1, 2, 0, 5])), torch.zeros(3))


@every
@pytest.mark.parametrize("weights", [[1, 1], [3, 3], [0.1, 0.1]], ids=str)
def test_two_halves_give_the_midpoint(rule: Aggregator, weights: list[float]) -> None:
    rows = torch.tensor([[0.0, 4.0], [2.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(rule(rows, torch.tensor(weights)), expected)


@every
def test_rows_of_1e38_in_float32_stay_finite(rule: Aggregator) -> None:
    rows = torch.tensor([[3e38, 3e38], [-3e38, 3e38], [3e38, -3e38], [1.0, 2.0]])
    assert bool(rule(rows, torch.tensor([1, 1, 2, 1])).isfinite().all())
    assert bool(rule(rows[:2], torch.tensor([1, 1])).isfinite().all())


@every
def test_a_thousand_rows_take_bounded_time(rule: Aggregator) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(1000, 30, generator=generator)
    weights = torch.randint(0, 50, (1000,), generator=generator)
    start = time.perf_counter()
    result = rule(rows, weights)
    assert bool(result.isfinite().all()) and time.perf_counter() - start < 5.0


@every
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_row_that_is_not_finite_makes_the_result_nan(
    rule: Aggregator, value: float, count: int
) -> None:
    for size in (1, 3, 8):
        rows = torch.arange(float(count * size)).reshape(count, size)
        rows[0, -1] = value
        assert bool(rule(rows, torch.ones(count)).isnan().all())


@every
@pytest.mark.parametrize(
    "weights",
    [[2.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, torch.nan, 1.0], [1.0, torch.inf, 1.0], [0, -3, 1]],
    ids=str,
)
def test_weights_that_mean_nothing_give_nan(rule: Aggregator, weights: list[float]) -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    assert bool(rule(rows, torch.tensor(weights)).isnan().all())


@every
@pytest.mark.parametrize(
    ("rows", "weights", "names"),
    [
        (torch.zeros(3), torch.ones(3), "rows"),
        (torch.zeros(0, 3), torch.ones(0), "rows"),
        (torch.zeros(2, 3, 1), torch.ones(2), "rows"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(2), "rows"),
        (torch.zeros(2, 3), torch.ones(3), "weights"),
        (torch.zeros(2, 3), torch.ones(2, 1), "weights"),
        (torch.zeros(2, 3), torch.ones(2, dtype=torch.complex64), "weights"),
    ],
    ids=["1-D", "none", "3-D", "integer", "too many", "2-D", "complex"],
)
def test_shapes_that_do_not_fit_are_named(
    rule: Aggregator, rows: Tensor, weights: Tensor, names: str
) -> None:
    with pytest.raises(ValueError, match=f"^{names} have shape"):
        rule(rows, weights)


# --- the median's convention -------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(case=weighted(float_rows))
def test_equal_weights_give_the_median_of_numpy(dtype: type, case: Weighted) -> None:
    rows = case.rows.numpy().astype(dtype)
    result = CoordinateWiseMedian()(torch.from_numpy(rows), torch.ones(len(rows)))
    assert np.array_equal(result.numpy(), np.median(rows, axis=0))


@pytest.mark.parametrize("count", [2, 6, 10, 1000])
def test_floating_halves_whose_sums_round_still_give_the_midpoint(count: int) -> None:
    rows = torch.arange(float(count), dtype=torch.float64).unsqueeze(1)
    weights = torch.full((count,), 0.1, dtype=torch.float64)
    assert float(CoordinateWiseMedian()(rows, weights)) == (count - 1) / 2


def test_integer_weights_are_compared_exactly_beyond_float64() -> None:
    rows = torch.tensor([[0.0], [1.0]])
    assert float(CoordinateWiseMedian()(rows, torch.tensor([2**60, 2**60 + 1]))) == 1.0
