"""Rules against an independent computation in long double, on the same rounded inputs."""

from collections.abc import Callable
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from flwr_byzasync.aggregators import (
    CTMA,
    Aggregator,
    CoordinateWiseMedian,
    GeometricMedian,
    Mean,
    build,
)
from tests.aggregators import reference
from tests.generators import Weighted, every_rule, weighted

Array = np.ndarray
LAM = 0.3
TOLERANCE = {np.float32: (1e-5, 2.0**-24), np.float64: (1e-10, 2.0**-53)}

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
kinds = pytest.mark.parametrize("kind", ["random", "close"])
SIZES = [(1, 4), (7, 1), (7, 3), (40, 5), (6, 6), (5, 1000), (5, 14_000)]
"""Rows and coordinates; 5 rows of 14,000 values are two blocks of columns."""

REFERENCES: dict[str, Callable[[Array, Array], Array]] = {
    "mean": reference.mean,
    "cwmed": reference.cwmed,
    "gm": reference.gm,
    "rfa": reference.rfa,
    "ctma(cwmed)": lambda x, s: reference.ctma(x, s, LAM, reference.cwmed(x, s)),
    "ctma(gm)": lambda x, s: reference.ctma(x, s, LAM, reference.gm(x, s)),
}


@cache
def rows_of(kind: str, m: int, d: int, dtype: type) -> tuple[Array, Array]:
    """Rows as a node would send them, and counts of which no row holds half."""
    rng = np.random.default_rng((m, d))
    rows = rng.standard_normal((m, d))
    if kind == "close":  # norm 500, 1e-4 apart in each coordinate
        along = rng.standard_normal(d)
        rows = 500 * along / np.sqrt(along @ along) + 1e-4 * rows
    return rows.astype(dtype), rng.integers(2, 5, m)


def with_liar(rows: Array, weights: Array, far: float) -> tuple[Array, Array]:
    """One more row, far away, of less weight than the share that CTMA expects."""
    liar = np.full_like(rows[:1], far) * np.where(np.arange(rows.shape[1]) % 2, 1, -1)
    return np.append(rows, liar.astype(rows.dtype), axis=0), np.append(weights, 1)


def deviation(rows: Array, weights: Array) -> float:
    """R: root of the weighted mean of the squared distances from the weighted mean."""
    distance = reference.norms(rows.astype(np.longdouble) - reference.mean(rows, weights))
    return float(np.sqrt((weights / weights.sum()) @ distance**2))


def call(rule: Aggregator, rows: Array, weights: Array) -> Array:
    return rule(torch.from_numpy(rows), torch.from_numpy(weights)).numpy()


def assert_within(result: Array, expected: Array, spread: float, note: object = "") -> None:
    relative, unit = TOLERANCE[result.dtype.type]
    error = float(reference.norms(result - expected))
    assert error <= relative * spread + unit * float(reference.norms(expected)), note


def check_against_long_double(name: str, kind: str, dtype: type, m: int, d: int) -> None:
    rows, weights = rows_of(kind, m, d, dtype)
    result = call(build(name, LAM), rows, weights)
    assert_within(result, REFERENCES[name](rows, weights), deviation(rows, weights), (m, d))


@pytest.mark.parametrize("name", REFERENCES)
@kinds
@dtypes
def test_rules_agree_with_long_double(name: str, kind: str, dtype: type) -> None:
    for m, d in SIZES:
        check_against_long_double(name, kind, dtype, m, d)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
@kinds
@dtypes
def test_rules_agree_with_long_double_over_many_blocks(name: str, kind: str, dtype: type) -> None:
    check_against_long_double(name, kind, dtype, 5, 70_000)


@pytest.mark.parametrize("name", REFERENCES)
@dtypes
def test_rules_agree_with_long_double_beside_a_far_row(name: str, dtype: type) -> None:
    for far in (1e6, 1e20):
        rows, weights = with_liar(*rows_of("random", 7, 20, dtype), far)
        result = call(build(name, LAM), rows, weights)
        assert_within(result, REFERENCES[name](rows, weights), deviation(rows, weights), far)


@pytest.mark.parametrize("name", ["cwmed", "gm", "ctma(cwmed)", "ctma(gm)"])
@kinds
@dtypes
def test_a_far_row_costs_the_others_no_digit(name: str, kind: str, dtype: type) -> None:
    for far, d in product((1e6, 1e12, 1e20), (1, 3, 20)):
        honest, counts = rows_of(kind, 7, d, dtype)
        rows, weights = with_liar(honest, counts, far)
        result = call(build(name, LAM), rows, weights)
        expected = REFERENCES[name](rows, weights)
        assert_within(result, expected, deviation(honest, counts), (far, d))


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_short_floats_are_rounded_once_at_the_end(name: str, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(rows_of("random", 7, 20, np.float32)[0]).to(dtype)
    weights, rule = torch.tensor([1, 2, 3, 4, 3, 2, 1]), build(name, LAM)
    assert torch.equal(rule(rows, weights), rule(rows.double(), weights).to(dtype))


# --- order by distance -------------------------------------------------------------------------
@dtypes
def test_rows_of_norm_500_are_ordered_by_differences_of_1e_4(dtype: type) -> None:
    base = np.full(100, 50.0)
    rows = np.stack([base, base, base, base + 1e-4, base + 1.2e-4, base + 1.4e-4]).astype(dtype)
    result = call(CTMA(CoordinateWiseMedian(), 1 / 6), rows, np.ones(6))
    assert_within(result, reference.mean(rows[:5], np.ones(5)), deviation(rows, np.ones(6)))


@pytest.mark.parametrize("far", [0.0, 1e5, 2.0**40])
@pytest.mark.parametrize("base", ["mean", "gm", "rfa"])
def test_equally_far_rows_stay_so_where_the_centre_is_rounded(base: str, far: float) -> None:
    # The first two rows mirror each other in the line through (0, 0) and (1, 2).
    rows = torch.tensor([[1.0, -8.0], [-7.0, -4.0], [3.0, 6.0]], dtype=torch.float64)
    shift = torch.tensor([far, far / 2], dtype=torch.float64).round()
    rule, weights = build(f"ctma({base})", 0.3), torch.tensor([3, 3, 1])
    moved = rule(rows + shift, weights) - shift
    torch.testing.assert_close(moved, rule(rows, weights), rtol=0, atol=1e-3)


# --- the geometric median ----------------------------------------------------------------------
GM = GeometricMedian()


def points(rows: list[list[float]], weights: list[int]) -> Weighted:
    return Weighted(torch.tensor(rows, dtype=torch.float64), torch.tensor(weights))


@pytest.mark.parametrize("name", ["gm", "cwmed", "ctma(gm)", "ctma(cwmed)"])
@pytest.mark.parametrize("far", [300001.0, -1e20, 1e100])
def test_three_zeros_and_a_far_row_give_zero(name: str, far: float) -> None:
    rule = build(name, byz_fraction=0.25)
    assert float(rule(*points([[0.0], [0.0], [0.0], [far]], [1, 1, 1, 1]))) == 0.0


@pytest.mark.parametrize("far", [1e6, 1e15, 1e17, 1e20, 1e50, 1e100])
def test_a_far_row_does_not_drown_what_the_others_say(far: float) -> None:
    near = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [3.0, 3.0]]
    assert GM(*points([*near, [far, far]], [1] * 6)).tolist() == [1.0, 1.0]


@given(weighted(), st.integers(0, 6))
def test_gm_is_exactly_the_row_that_holds_most_of_the_weight(case: Weighted, which: int) -> None:
    weights = case.weights.clone()
    weights[which % len(weights)] = weights.sum() + 1
    assert torch.equal(GM(case.rows, weights), case.rows[which % len(weights)])


@pytest.mark.parametrize("shift", [0.0, 1000.0, 2.0**30])
@pytest.mark.parametrize("size", [2, 3, 5, 40])
def test_gm_is_exactly_a_row_up_to_the_pull_that_the_row_resists(size: int, shift: float) -> None:
    # Weights 3 and 4 at a right angle pull with 5.
    rows = torch.zeros(3, size, dtype=torch.float64) + shift
    rows[1, 0] += 1.0
    rows[2, 1] += 2.0
    assert torch.equal(GM(rows, torch.tensor([5, 3, 4])), rows[0])
    moved = GM(rows, torch.tensor([4999, 3000, 4000])) - rows[0]
    assert 1e-5 < float(moved.norm()) < 1e-2 and bool((moved[:2] > 0).all())


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
@pytest.mark.parametrize(
    ("steps", "weights", "middle"),
    [
        ([0, 1], [1, 1], 0.5),
        ([0, 0, 1, 1], [1, 1, 1, 1], 0.5),
        ([5, 0, 5, 2, 0, 2], [1, 1, 1, 2, 3, 1], 2.0),
        ([9, 0, 5, 2], [1, 1, 2, 2], 3.5),
        ([0, 2, 2, 7], [3, 1, 1, 1], 1.0),
        ([0, 2, 7], [2, 2, 1], 2.0),
    ],
)
def test_gm_of_rows_on_a_line_is_their_median(
    steps: list[int], weights: list[int], middle: float, size: int
) -> None:
    direction = torch.arange(1.0, size + 1, dtype=torch.float64) % 7 - 3.0
    direction[0] = 1.0
    rows = 4.0 + torch.outer(torch.tensor(steps).double(), direction)
    result = GM(rows, torch.tensor(weights))
    torch.testing.assert_close(result, 4.0 + middle * direction, rtol=1e-15, atol=1e-13)


@given(weighted())
def test_gm_is_stationary(case: Weighted) -> None:
    rows, weights = case.rows.numpy(), case.weights.numpy()
    assert reference.residual(rows, weights, GM(*case).numpy()) <= 1e-6


@given(weighted(), st.sampled_from((1.0, 1e6, 1e20, 1e90)))
def test_gm_is_stationary_beside_a_liar_of_nearly_half_the_weight(
    case: Weighted, far: float
) -> None:
    liar = far * (1.0 + torch.arange(case.rows.shape[1], dtype=torch.float64))
    rows = torch.cat([case.rows, liar.unsqueeze(0)])
    weights = torch.cat([2 * case.weights, 2 * case.weights.sum().reshape(1) - 1])
    assert reference.residual(rows.numpy(), weights.numpy(), GM(rows, weights).numpy()) <= 1e-6


def test_gm_is_a_row_to_the_last_bit_where_the_median_of_coordinates_is_another_point() -> None:
    # Pulls of 3 at about a right angle: 4.2 against the 5 of the first row.
    rows = torch.tensor([[0.1, 0.7, 0.3], [1.2, 0.9, 0.6], [0.3, -0.7, 0.5]], dtype=torch.float64)
    weights = torch.tensor([5, 3, 3])
    assert torch.equal(GM(rows, weights), rows[0])
    assert not bool((CoordinateWiseMedian()(rows, weights) == rows[0]).all())


def test_the_residual_tells_a_minimiser_from_what_is_not_one() -> None:
    rows, weights = rows_of("random", 7, 3, np.float64)
    assert reference.residual(rows, weights, reference.gm(rows, weights)) <= 1e-15
    assert reference.residual(rows, weights, call(Mean(), rows, weights)) >= 1e-3


@pytest.mark.parametrize(("m", "d"), [(600, 520), (300, 1000), (1000, 3)])
def test_gm_of_many_rows_is_stationary(m: int, d: int) -> None:
    rng = np.random.default_rng(m)
    rows, weights = rng.standard_normal((m, d)), rng.integers(1, 9, m)
    rows[: m // 3] *= 1e-3  # a cluster that holds less than half
    assert reference.residual(rows, weights, call(GM, rows, weights)) <= 1e-12


@given(st.integers(0, 2**32 - 1), st.sampled_from((2, 3, 12)))
def test_gm_has_the_least_objective_where_rounding_bends_a_line(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(size) + np.outer(rng.standard_normal(6), rng.standard_normal(size))
    weights = np.array([3, 1, 1, 2, 2, 3])
    x, w = rows.astype(np.longdouble), weights / np.longdouble(12)
    result, best = call(GM, rows, weights), reference.gm(rows, weights)
    assert reference.gain(x, w, result, best - result) <= 1e-13 * deviation(rows, weights)


@pytest.mark.parametrize("exponent", range(-140, 141, 20))
def test_gm_is_stationary_whatever_the_scales_of_its_rows(exponent: int) -> None:
    rows, weights = rows_of("random", 7, 4, np.float64)
    near = 10.0**exponent
    rows = np.where(np.arange(7)[:, None] < 4, near, 1.0) * rows
    weights = np.array([2, 2, 2, 2, 1, 1, 1])
    assert reference.residual(rows, weights, call(GM, rows, weights), scale=near) <= 1e-9


# --- two tight groups, each with nearly half of the weight -------------------------------------
@pytest.mark.slow
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-6, 1e-9, 1e-13, 1e-16]),
    st.sampled_from([1e-2, 1e-4, 1e-6, 1e-9]),
)
@example(392004614, 1e-6, 1e-9)  # the first step off the row ended where all steps are rounding
@example(268506, 1e-9, 1e-9)  # the reference's own system is singular to the last bit
def test_between_any_two_tight_groups_the_geometric_median_is_found(
    seed: int, width: float, short: float
) -> None:
    check_between_groups(seed, width, short)


@pytest.mark.parametrize("short", [1e-2, 1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize("width", [1e-6, 1e-9, 1e-13, 1e-16])
def test_between_two_tight_groups_the_geometric_median_is_found(width: float, short: float) -> None:
    check_between_groups(7, width, short)


def check_between_groups(seed: int, width: float, short: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, 2, (6,), generator=generator)
    which[:2] = torch.tensor([0, 1])
    centres = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    rows = centres[which] + width * noise
    weights = torch.rand(6, generator=generator, dtype=torch.float64) + 0.01
    # The first group holds a little less than half.
    weights[which == 0] *= weights[which == 1].sum() / weights[which == 0].sum() * (1 - short)
    found = GeometricMedian()(rows, weights).numpy().astype(np.longdouble)
    best = reference.gm(rows.numpy(), weights.numpy())
    x, w = rows.numpy().astype(np.longdouble), (weights / weights.sum()).numpy()
    assert reference.gain(x, w.astype(np.longdouble), found, best - found) <= 1e-13


def test_of_two_rows_1e_13_apart_neither_holds_the_geometric_median() -> None:
    """Found by the worst-case search: each alone leaves a Weiszfeld step of 1e-17."""
    rows = [[0.108, 0.0077], [-0.21778328570120, 0.0113], [0.1087, 0.0073], [0.1087, 0.0074]]
    rows.append([rows[1][0] + 1.35e-13, rows[1][1]])
    weights = torch.tensor([17211563, 250000000, 140401477, 342405925, 249981035])
    assert float(GeometricMedian()(torch.tensor(rows, dtype=torch.float64), weights)[0]) > 0.09


@pytest.mark.parametrize("name", sorted(every_rule(0.2)))
def test_floating_weights_of_any_size_are_shares(name: str) -> None:
    """Their products and sums must not leave float64, nor the rows' sums with them."""
    rule, rows = every_rule(0.2)[name], torch.arange(20.0, dtype=torch.float64).reshape(10, 2)
    weights = torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    expected = rule(rows * 1e30, weights)
    for scale in (1e300, 1e-300, 3e-320, 1e30, 1e-30):
        result = rule(rows * 1e30, weights * scale)
        tolerance = 1e-2 if scale == 3e-320 else 1e-12  # weights of few digits
        assert torch.allclose(result, expected, rtol=tolerance, atol=0.0), scale


@pytest.mark.parametrize("name", sorted(every_rule(0.2)))
def test_integer_weights_beyond_int64_are_refused_as_nan(name: str) -> None:
    """Their sums would wrap around, and a median would be somewhere else in silence."""
    rule, rows = every_rule(0.2)[name], torch.arange(40.0, dtype=torch.float64).reshape(40, 1)
    assert rule(rows[:3], torch.full((3,), 2**61)).isnan().all()
    assert rule(rows, torch.full((40,), 2**57)).isnan().all()
    assert rule(rows[:10], torch.full((10,), 2**55)).isfinite().all()
