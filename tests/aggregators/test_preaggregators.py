"""Pre-aggregators: their published form, their bounds over a base, and where none holds."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync import ConfigError
from flwr_byzasync.aggregators import (
    ARC,
    CTMA,
    NNM,
    Aggregator,
    Bucketing,
    Clipping,
    CoordinateWiseMedian,
    GeometricMedian,
    Law,
    Mean,
    TrimmedMean,
    build,
)
from flwr_byzasync.aggregators.bucketing import keyed_order
from flwr_byzasync.aggregators.nnm import mix
from flwr_byzasync.aggregators.rule import bound_of, laws_of, published_of
from flwr_byzasync.aggregators.unweighted import Unweighted
from flwr_byzasync.testing import LawError, Weighted, admissible, check_aggregator, ratio
from flwr_byzasync.testing import weighted_rows as weighted
from flwr_byzasync.testing.cases import Trial
from flwr_byzasync.testing.conformance import claim_of
from flwr_byzasync.testing.laws import LAWS
from tests.aggregators import reference

Array = np.ndarray
MEDIAN = CoordinateWiseMedian()


class Recorder:
    """A third party's base that keeps what it is shown."""

    def __init__(self) -> None:
        self.rows, self.weights = torch.empty(0, 0), torch.empty(0)

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        self.rows, self.weights = rows, weights
        return Mean()(rows, weights)


def inputs_of(
    make: Callable[[Recorder], Aggregator], rows: Array, weights: Array
) -> tuple[Array, ...]:
    """Return the rows and weights that the base gets."""
    base = Recorder()
    make(base)(torch.from_numpy(rows), torch.from_numpy(weights))
    return base.rows.numpy(), base.weights.numpy()


def tensors(rows: Sequence[object], weights: Sequence[float]) -> Weighted:
    return Weighted(torch.tensor(rows, dtype=torch.float64), torch.tensor(weights))


# --- the published forms, for equal weights and whole counts -----------------------------------
COUNTS = [(n, f) for n in (1, 2, 5, 9, 12, 17) for f in range((n + 1) // 2)]
counts = pytest.mark.parametrize(("n", "f"), COUNTS, ids=str)


def normal(n: int, d: int = 4) -> Array:
    return np.random.default_rng((n, d)).standard_normal((n, d)) + 0.5


@counts
def test_nnm_means_the_n_minus_f_nearest_rows(n: int, f: int) -> None:
    rows = normal(n)
    nearest = [reference.norms(rows - x).argsort()[: n - f] for x in rows]
    mixed, weights = inputs_of(lambda base: NNM(base, f / n), rows, np.ones(n))
    np.testing.assert_allclose(mixed, [rows[i].mean(axis=0) for i in nearest], atol=1e-12)
    assert (weights == 1).all()


@counts
def test_arc_clips_the_published_number_of_rows(n: int, f: int) -> None:
    rows = normal(n)
    norm, clipped = reference.norms(rows), 2 * f * (n - f) // n
    order = norm.argsort()[::-1]
    expected = rows.copy()
    for i in order[:clipped]:
        expected[i] *= norm[order[clipped]] / norm[i]
    result, _ = inputs_of(lambda base: ARC(base, f / n), rows, np.ones(n))
    np.testing.assert_allclose(result, expected, rtol=1e-12)
    assert np.array_equal(result[order[clipped:]], rows[order[clipped:]])


@pytest.mark.parametrize("n", [1, 2, 5, 12])
@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_bucketing_means_a_few_rows_after_another_in_its_order(n: int, size: int) -> None:
    rows = normal(n)
    order = keyed_order(torch.ones(n), seed=7).numpy()
    groups = [rows[order[i : i + size]] for i in range(0, n, size)]
    means, weights = inputs_of(lambda base: Bucketing(base, 7, size), rows, np.ones(n, dtype=int))
    np.testing.assert_allclose(means[weights > 0], [g.mean(axis=0) for g in groups], atol=1e-12)
    assert weights[weights > 0].tolist() == [len(g) for g in groups]


@pytest.mark.parametrize("threshold", [0.5, 2.0, 1e3])
def test_clipping_shortens_rows_to_the_threshold(threshold: float) -> None:
    rows = normal(9)
    factor = np.minimum(1, threshold / reference.norms(rows))
    clipped, _ = inputs_of(lambda base: Clipping(base, threshold), rows, np.ones(9))
    np.testing.assert_allclose(clipped, rows * factor[:, None], rtol=1e-12)
    assert np.array_equal(clipped[factor == 1], rows[factor == 1])


# --- with weights ------------------------------------------------------------------------------
def test_nnm_takes_the_last_row_in_part_and_ties_in_proportion() -> None:
    rows = np.array([[0.0], [1.0], [4.0], [-4.0]])
    # 6 of 8: around 0, all of 0 and 1, and one of the 4 at distance 4, in proportion 3 : 1.
    mixed, _ = inputs_of(lambda base: NNM(base, 0.25), rows, np.array([3, 2, 2, 1]))
    assert mixed[0, 0] == pytest.approx((1 * 2 + (4 * 2 - 4) / 3) / 6)
    assert mixed[3, 0] == pytest.approx((-4 + 0 * 3 + 1 * 2) / 6)


def test_nnm_on_a_line_over_a_median_is_ctma_around_it() -> None:
    @given(case=weighted(sizes=[1]), lam=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.45]))
    def same(case: Weighted, lam: float) -> None:
        # An odd weight has no halves: the median is one of the rows.
        odd = case.weights * 2 + torch.eye(len(case.weights), dtype=torch.int64)[0]
        expected = CTMA(MEDIAN, lam)(case.rows, odd)
        spread = float((case.rows - case.rows[0]).abs().max())
        torch.testing.assert_close(
            NNM(MEDIAN, lam)(case.rows, odd), expected, rtol=1e-15, atol=1e-9 * spread
        )

    same()


def test_arc_counts_weight_not_rows() -> None:
    rows = np.array([[1.0], [2.0], [-8.0], [9.0]])
    # 2 λ (1 − λ) S is 3.75: the 3 at 9 are clipped to the next, which would be too many.
    clipped, _ = inputs_of(lambda base: ARC(base, 0.25), rows, np.array([3, 3, 1, 3]))
    assert clipped[:, 0].tolist() == [1, 2, -8, 8]
    clipped, _ = inputs_of(lambda base: ARC(base, 0.25), rows, np.array([4, 4, 1, 1]))
    assert clipped[:, 0].tolist() == [1, 2, -2, 2]


def test_bucketing_takes_a_group_in_layers_of_equal_weight() -> None:
    rows, weights = np.array([[0.0], [3.0], [6.0]]), np.array([2, 7, 3])
    means, layers = inputs_of(lambda base: Bucketing(base, 0, 3), rows, weights)
    assert means[:, 0].tolist() == [3.0, 4.5, 3.0] and layers.tolist() == [4, 2, 6]


@given(case=weighted(), seed=st.integers(0, 9), size=st.integers(1, 4))
def test_buckets_hold_all_the_weight_and_the_mean(case: Weighted, seed: int, size: int) -> None:
    base = Recorder()
    result = Bucketing(base, seed, size)(*case)
    assert int(base.weights.sum()) == int(case.weights.sum()) and bool((base.weights >= 0).all())
    spread = float((case.rows - case.rows[0]).abs().max())
    torch.testing.assert_close(result, Mean()(*case), rtol=1e-14, atol=1e-12 * spread)


@given(
    drawn=st.lists(st.tuples(st.booleans(), st.integers(0, 50)), min_size=1, max_size=12),
    seed=st.integers(0, 9),
    size=st.integers(1, 5),
)
def test_liars_touch_at_most_size_times_their_weight(
    drawn: list[tuple[bool, int]], seed: int, size: int
) -> None:
    rows = np.array([[float(liar)] for liar, _ in drawn])
    weights = np.array([weight for _, weight in drawn])
    means, layers = inputs_of(lambda base: Bucketing(base, seed, size), rows, weights)
    assert layers[means[:, 0] > 0].sum() <= size * weights[rows[:, 0] > 0].sum()


# --- the order of bucketing --------------------------------------------------------------------
def test_the_order_follows_from_the_seed_alone() -> None:
    ones = torch.ones(40)
    torch.manual_seed(1)
    before, state = keyed_order(ones, 3), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(keyed_order(ones, 3), before)
    assert not torch.equal(keyed_order(ones, 4), before)
    torch.manual_seed(1)
    keyed_order(ones, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(before.tolist()) == list(range(40))
    # The first places of the stream, so that no other version draws another order unnoticed.
    assert keyed_order(torch.ones(6), 0).tolist() == [3, 5, 2, 4, 1, 0]


@given(weights=st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_rows_of_weight_zero_come_last_and_move_no_other(weights: list[int]) -> None:
    used = [i for i, weight in enumerate(weights) if weight]
    order = keyed_order(torch.tensor(weights), 5).tolist()
    alone = keyed_order(torch.ones(max(1, len(used))), 5).tolist()
    assert order[: len(used)] == [used[i] for i in alone[: len(used)]]


# --- bounds ------------------------------------------------------------------------------------
SETTINGS = [
    "nnm(monna(pivot=1))",
    "arc(gm, byz_fraction=0.4)",
    "nnm(cwmed, byz_fraction=0.05)",
    "bucketing(gm, seed=2, size=3)",
    "bucketing(ctma(cwmed, byz_fraction=0.45), seed=1)",
    "clipping(cwmed, threshold=4)",
    "clipping(gm, threshold=0.5)",
]


@pytest.mark.parametrize("examples", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("text", SETTINGS)
def test_rules_with_settings_keep_what_they_declare(text: str, examples: int) -> None:
    check_aggregator(build(text, 0.25), max_examples=examples, seconds=60.0)


@pytest.mark.parametrize("lam", [0.01, 0.1, 0.2, 0.3, 0.4, 0.49])
def test_constants_are_those_of_the_documents(lam: float) -> None:
    c, p = 1 / (1 - 2 * lam), lam / (1 - lam)
    floor = lam / (1 - 2 * lam)
    mixed, clipped = bound_of(NNM(MEDIAN, lam), lam), bound_of(ARC(MEDIAN, lam), lam)
    assert mixed == pytest.approx(
        4 * p * (1 + c) * (1 + (2 * (p * (1 - p)) ** 0.5 if lam < 1 / 3 else 1))
    )
    assert bound_of(CTMA(TrimmedMean(lam), lam), lam) == pytest.approx(4 * floor)
    assert bound_of(CTMA(MEDIAN, lam), lam) == pytest.approx(4 * p * c)
    assert clipped == pytest.approx((1 + 2 * lam) / (1 - 2 * lam))
    assert mixed is not None and clipped is not None and min(mixed, clipped) >= floor
    published = [published_of(rule(MEDIAN, lam), lam) for rule in (NNM, ARC)]
    median = (1 + floor) ** 2
    assert published == pytest.approx([8 * p * (1 + median), median + 2 * floor])
    assert bound_of(Bucketing(MEDIAN, size=1), lam) == pytest.approx(c)


def test_bucketing_promises_nothing_where_liars_may_be_in_half_of_the_means() -> None:
    assert bound_of(Bucketing(MEDIAN), 0.1) == pytest.approx((0.9 / 0.6 + 0.1) / 0.8)
    assert bound_of(Bucketing(MEDIAN), 0.25) is None and bound_of(Bucketing(MEDIAN), 0.4) is None
    assert bound_of(Bucketing(CTMA(MEDIAN, 0.1)), 0.1) is None
    assert bound_of(Bucketing(CTMA(MEDIAN, 0.2)), 0.1) is not None
    rows = torch.zeros(8, 1)
    rows[keyed_order(torch.ones(8), 0)[[0, 2, 4]]] = 99.0  # three of eight, in three of four means
    assert ratio(Bucketing(MEDIAN), rows, torch.ones(8), 3 / 8) == float("inf")


@pytest.mark.parametrize("rule", [NNM, ARC])
def test_a_share_beyond_the_expected_has_no_bound(rule: Any) -> None:
    assert bound_of(rule(MEDIAN, 0.2), 0.1) == bound_of(rule(MEDIAN, 0.2), 0.2) is not None
    assert bound_of(rule(MEDIAN, 0.2), 0.21) is None
    assert published_of(rule(MEDIAN, 0.2), 0.21) is None


@pytest.mark.parametrize("text", ["nnm(mean)", "arc(mean)", "bucketing(mean)", "clipping(mean)"])
def test_a_base_without_a_bound_gets_none(text: str) -> None:
    rule = build(text, 0.25)
    assert bound_of(rule, 0.1) is None and published_of(rule, 0.1) is None
    case = tensors([[1.0], [1.0], [1.0], [-1.0]], [1, 1, 1, 1])
    assert ratio(rule, *case, 0.25) == float("inf")


def test_clipping_to_a_threshold_has_no_constant_even_without_liars() -> None:
    case = tensors([[2.0], [2.0]], [1, 1])
    assert ratio(Clipping(MEDIAN, 1.0), *case, 0) == float("inf")
    assert ratio(Clipping(MEDIAN, 2.0), *case, 0) == 0.0


@given(case=weighted(), threshold=st.sampled_from([0.5, 2.0, 7.0]), liars=st.integers(0, 9))
def test_clipping_adds_at_most_what_it_cuts_off(
    case: Weighted, threshold: float, liars: int
) -> None:
    lam = Fraction(liars, 20)
    result = Clipping(GeometricMedian(), threshold)(*case)
    for honest in admissible(case.weights, lam):
        share = (case.weights * torch.from_numpy(honest)).double()
        share = share / share.sum()
        centre = share @ case.rows
        rho = (share @ (case.rows - centre).square().sum(dim=1)).sqrt()
        cut = share @ (case.rows.norm(dim=1) - threshold).clamp(min=0.0)
        allowed = rho / float(1 - 2 * lam) ** 0.5 + cut
        assert float((result - centre).norm()) <= float(allowed) * (1 + 1e-9) + 1e-9


@given(case=weighted(), liars=st.integers(0, 9))
def test_arc_makes_no_row_longer_than_honest_ones(case: Weighted, liars: int) -> None:
    base = Recorder()
    ARC(base, liars / 20)(*case)
    longest = float(base.rows[case.weights > 0].norm(dim=1).max())
    for honest in admissible(case.weights, Fraction(liars, 20)):
        assert longest <= float(case.rows[honest].norm(dim=1).max()) * (1 + 1e-9)


@given(weighted("integers", "far", "near", max_rows=6), st.sampled_from(("1/20", "1/5", "2/5")))
def test_mixed_rows_are_near_the_honest_mean_on_average(case: Weighted, share: str) -> None:
    """What the constant of NNM follows from, for every admissible set: docs/theory/nnm.md."""
    lam, (rows, weights) = Fraction(share), case
    p = float(lam / (1 - lam))
    factor = 4 * p * (1 + 2 * (p * (1 - p)) ** 0.5) if 3 * lam < 1 else 8 * p
    mixed = mix(rows, weights, float(lam))
    for honest in admissible(weights, lam):
        part = torch.from_numpy(honest) * weights.double()
        part /= part.sum()
        mean = part @ torch.where((part > 0)[:, None], rows, 0.0)
        spread = part @ (rows - mean).square().sum(dim=1)
        away = part @ (mixed - mean).square().sum(dim=1)
        size = rows.abs().max() ** 2
        assert float(away) <= factor * float(spread) * (1 + 1e-9) + 1e-20 * float(size)


# --- the constants cannot be lower -------------------------------------------------------------
def bucketed(beside: float) -> float:
    """The ratio where a liar and a row at `beside` have their mean, and the median, at 1."""
    values = torch.tensor([0.0, 0.0, 1.0, 1.0, beside, 2.0 - beside], dtype=torch.float64)
    counts = torch.tensor([249, 249, 151, 151, 100, 100])
    rows, weights = torch.empty_like(values), torch.empty_like(counts)
    order = keyed_order(torch.ones(6), 0)
    rows[order], weights[order] = values, counts
    return ratio(Bucketing(MEDIAN), rows.unsqueeze(1), weights, 0.1)


def test_the_constant_of_bucketing_is_sharp_over_a_median() -> None:
    constant = bound_of(Bucketing(MEDIAN), 0.1)
    assert constant == pytest.approx(2.0)
    found = max(bucketed(beside) for beside in np.linspace(-3.0, 3.0, 121))
    assert 0.97 * 2.0 < found <= 2.0 * (1 + 1e-9)


def test_the_constant_of_arc_is_sharp_over_the_median() -> None:
    far, lam, longer = 1e5, 0.25, 2.0 * 0.75**0.5
    u = torch.full((3,), 3**-0.5, dtype=torch.float64)
    groups = far * u + 0.5 - 1.5 * torch.eye(3, dtype=torch.float64)
    groups = groups * (far / groups.norm(dim=1, keepdim=True))
    low = (far * u - 1.0).expand(2, 3)
    rows = torch.cat([groups, groups * (1.0 + longer / far), low])
    weights = torch.tensor([498] * 6 + [12, 1000])
    constant = bound_of(ARC(MEDIAN, lam), lam)
    assert constant == pytest.approx(3.0)
    assert 0.97 * 3.0 < ratio(ARC(MEDIAN, lam), rows, weights, lam) <= 3.0


def test_no_constant_of_nnm_is_lower_than_that_of_ctma_over_a_median() -> None:
    lam, slack = 0.25, 1e-3
    rows = tensors([[0.0], [2 * lam], [1.0], [-1.0 + slack]], [1]).rows
    weights = torch.tensor([0.5 - lam + slack, 0.5 - lam - slack, lam, lam], dtype=torch.float64)
    sharp = 4 * lam / ((1 - lam) * (1 - 2 * lam))
    assert 0.95 * sharp < ratio(NNM(MEDIAN, lam), rows, weights, lam) <= sharp * (1 + 1e-9)


# --- controls: bucketing that forgets why it takes layers --------------------------------------
def whole_groups(rows: Tensor, weights: Tensor) -> Tensor:
    """Median of the weighted means of whole groups of two."""
    order = keyed_order(weights, 0)
    pairs, grouped = rows[order].reshape(-1, 2, 1), weights[order].double().reshape(-1, 2)
    means = (pairs * grouped.unsqueeze(2)).sum(dim=1) / grouped.sum(dim=1, keepdim=True)
    return MEDIAN(means, grouped.sum(dim=1))


def test_a_light_liar_steers_a_heavy_group_unless_it_is_taken_in_layers() -> None:
    order = keyed_order(torch.ones(4), 0)
    rows, weights = torch.zeros(4, 1, dtype=torch.float64), torch.ones(4, dtype=torch.int64)
    rows[order[1]], weights[order[0]] = 1e6, 7
    assert ratio(whole_groups, rows, weights, 0.1) == float("inf")
    assert ratio(Bucketing(MEDIAN), rows, weights, 0.1) < 2.0


# --- laws that are not declared do not hold ----------------------------------------------------
UNDECLARED = [
    ("bucketing(cwmed)", Law.COPIES, tensors([[0.0], [4.0]], [1, 2])),
    ("bucketing(cwmed)", Law.PERMUTATION, tensors([[0.0], [1.0], [8.0]], [1, 1, 1])),
    ("arc(mean)", Law.TRANSLATION, tensors([[-8.0], [0.0], [1.0]], [1, 1, 1])),
    ("arc(mean)", Law.HULL, tensors([[1.0, 1.0], [9.0, 1.0]], [5, 3])),
    ("clipping(cwmed)", Law.TRANSLATION, tensors([[0.0], [1.0]], [2, 1])),
    ("clipping(cwmed)", Law.SCALE, tensors([[0.5], [0.25]], [2, 1])),
    ("clipping(cwmed)", Law.AGREEMENT, tensors([[2.0]], [1])),
    ("clipping(cwmed)", Law.HULL, tensors([[2.0], [3.0]], [1, 1])),
]


@pytest.mark.parametrize(("text", "law", "case"), UNDECLARED)
def test_a_law_that_is_not_declared_does_not_hold(text: str, law: Law, case: Weighted) -> None:
    rule = build(text, 0.25)
    vector = torch.full(case.rows.shape[1:], 9.0, dtype=torch.float64)
    trial = Trial(case, tuple(reversed(range(len(case.rows)))), vector, 4.0, 3, 0.0)
    assert law not in laws_of(rule)
    LAWS[law](claim_of(Mean()), trial)
    with pytest.raises(LawError, match=f"^{law.name} is broken"):
        LAWS[law](claim_of(rule), trial)


@pytest.mark.parametrize("text", ["nnm(rfa)", "arc(rfa)", "bucketing(rfa)", "clipping(rfa)"])
def test_a_pre_aggregator_keeps_no_law_that_its_base_breaks(text: str) -> None:
    rule = build(text, 0.25)
    assert Law.SCALE not in laws_of(rule) and Law.WEIGHT_SCALE in laws_of(rule)


def test_rows_that_a_base_trusts_stay_in_their_place_but_for_bucketing() -> None:
    for text in ("nnm(monna(pivot=2))", "arc(monna(pivot=2))", "clipping(monna(pivot=2))"):
        assert getattr(build(text, 0.2), "trusted", None) == (2,)
    rule = build("bucketing(monna(pivot=2, byz_fraction=0.4))", 0.2)
    assert getattr(rule, "trusted", None) == () and bound_of(rule, 0.1) is None


# --- precision ---------------------------------------------------------------------------------
def mixed_exactly(rows: Array, lam: float) -> Array:
    x = rows.astype(np.longdouble)
    keep = len(rows) - round(lam * len(rows))
    near = [reference.norms(x - row).argsort(kind="stable")[:keep] for row in x]
    return np.stack([row + (x[i] - row).mean(axis=0) for row, i in zip(x, near, strict=True)])


def arc_exactly(rows: Array, lam: float) -> Array:
    x, n = rows.astype(np.longdouble), len(rows)
    norm = reference.norms(x)
    limit = np.sort(norm)[::-1][int(2 * lam * (1 - lam) * n + 1e-9)]
    return x * np.minimum(1, limit / norm)[:, None]


def bucketed_exactly(rows: Array, _: float) -> Array:
    x = rows.astype(np.longdouble)[keyed_order(torch.ones(len(rows)), 0).numpy()]
    return np.stack([x[i] + (x[i : i + 2] - x[i]).mean(axis=0) for i in range(0, len(x), 2)])


@pytest.mark.parametrize("far", [None, 1e6, 1e20])
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("text", "exact"),
    [("nnm", mixed_exactly), ("arc", arc_exactly), ("bucketing", bucketed_exactly)],
)
def test_rows_of_norm_500_that_differ_by_1e_4_keep_their_digits(
    text: str, exact: Callable[[Array, float], Array], dtype: type, far: float | None
) -> None:
    rng = np.random.default_rng(5)
    close = 50.0 + 1e-4 * rng.standard_normal((10, 100))
    rows = close.astype(dtype)
    if far is not None:
        rows[3] = far
    shown = exact(rows, 0.2)
    for base in ("cwmed", "gm"):
        result = build(f"{text}({base})", 0.2)(torch.from_numpy(rows), torch.ones(10)).numpy()
        expected = getattr(reference, base)(shown, np.ones(len(shown), dtype=int))
        unit = np.finfo(dtype).eps
        error = float(reference.norms(result.astype(np.longdouble) - expected))
        assert error <= 1e-7 * 1e-4 + 2 * unit * 500.0


# --- settings ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("nnm(gm)", NNM(GeometricMedian(), 0.2)),
        ("ctma(nnm(gm, byz_fraction=0.1))", CTMA(NNM(GeometricMedian(), 0.1), 0.2)),
        ("arc(nnm(cwmed))", ARC(NNM(MEDIAN, 0.2), 0.2)),
        ("clipping(cwmed, threshold=3)", Clipping(MEDIAN, 3)),
        ("bucketing(gm)", Bucketing(GeometricMedian(), seed=0, size=2)),
        (
            "ctma(bucketing(cwmed, seed=3, size=4))-unweighted",
            Unweighted(CTMA(Bucketing(MEDIAN, seed=3, size=4), 0.2)),
        ),
    ],
)
def test_pre_aggregators_are_written_with_their_settings(text: str, rule: Aggregator) -> None:
    assert build(text, 0.2) == rule and repr(build(text, 0.2)) == repr(rule)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: NNM(3, 0.2), "^base=3 is not legal: it must be a rule, called as rule"),  # type: ignore[arg-type]
        (lambda: ARC(None, 0.2), "^base=None is not legal: it must be a rule"),  # type: ignore[arg-type]
        (lambda: Bucketing("gm"), "^base='gm' is not legal: it must be a rule"),  # type: ignore[arg-type]
        (lambda: Clipping(None), "^base=None is not legal: it must be a rule"),  # type: ignore[arg-type]
        (lambda: NNM(MEDIAN, 0.5), r"^byz_fraction=0.5 is not legal: .* in \[0, 0.5\)"),
        (lambda: ARC(MEDIAN, -0.1), r"^byz_fraction=-0.1 is not legal"),
        (lambda: Bucketing(MEDIAN, seed=-1), "^seed=-1 is not legal: it must be an integer >= 0"),
        (lambda: Bucketing(MEDIAN, seed=0.5), "^seed=0.5 is not legal"),  # type: ignore[arg-type]
        (lambda: Bucketing(MEDIAN, size=0), "^size=0 is not legal: it must be an integer >= 1"),
        (lambda: Bucketing(MEDIAN, size=True), "^size=True is not legal"),
        (lambda: Clipping(MEDIAN, 0.0), r"^threshold=0.0 is not legal: .* in \(0, inf\)"),
        (lambda: Clipping(MEDIAN, float("inf")), "^threshold=inf is not legal"),
    ],
)
def test_what_is_not_legal_is_named(make: Callable[[], Aggregator], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()
