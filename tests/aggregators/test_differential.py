"""Rules at equal weights against NumPy, SciPy and ByzFL: one answer, or a stated difference.

docs/differences.md is the table of what is tested here.
"""

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations
from math import ceil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from scipy.spatial.distance import cdist, pdist

from flwr_byzasync.aggregators import Aggregator, build, discover
from flwr_byzasync.aggregators.bucketing import keyed_order
from flwr_byzasync.aggregators.centered_clipping import GOLDEN
from flwr_byzasync.testing import weighted_rows

Array = np.ndarray
Reference = Callable[[Array, int], Array]
HALF = settings(max_examples=settings().max_examples // 2)
"""For tests that are run once for each rule."""
DOCS = Path(__file__).parents[2] / "docs" / "differences.md"


def load() -> tuple[ModuleType, ModuleType]:
    """ByzFL's two modules of rules, without its ``__init__``: that imports plotting and training.

    Left in `sys.modules`, the stand-in for the package would be found by whoever wants the rest.
    """
    names = ("byzfl.aggregators.aggregators", "byzfl.aggregators.preaggregators")
    found = find_spec("byzfl")
    if found is None:
        raise ModuleNotFoundError("byzfl: install the `test` extra")
    stand_in = "byzfl" not in sys.modules
    if stand_in:
        sys.modules["byzfl"] = ModuleType("byzfl")
        sys.modules["byzfl"].__path__ = list(found.submodule_search_locations or ())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it and its imports warn of is not ours to mend
            return import_module(names[0]), import_module(names[1])
    finally:
        if stand_in:
            for name in [name for name in sys.modules if name.partition(".")[0] == "byzfl"]:
                del sys.modules[name]


byzfl, pre = load()


# --- cases and comparison ----------------------------------------------------------------------
@st.composite
def cases(
    draw: st.DrawFn, least: int = 3, dims: tuple[int, ...] = (1, 2, 3, 9), bulyan: bool = False
) -> tuple[Array, int]:
    """Rows in general position, a few far or all far from the origin, and f of them.

    n − f >= `least`: with two rows left each other's nearest row is the other, a tie.
    """
    n = draw(st.integers(4 if bulyan else least, 10))
    f = draw(st.integers(0, min((n - 1) // 4 if bulyan else (n - 1) // 2, n - least)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = random.normal(size=(n, draw(st.sampled_from(dims))))
    rows[: draw(st.sampled_from((0, f, f + 1)))] *= draw(st.sampled_from((1.0, 30.0, 1e3)))
    return random.permutation(rows) + draw(st.sampled_from((0.0, 0.0, 500.0))), f


def ours(name: str, rows: Array, f: int = 0) -> Array:
    rule = build(name, byz_fraction=f / len(rows))
    return rule(torch.from_numpy(rows.copy()), torch.ones(len(rows))).numpy()


def theirs(rule: Callable[[Array], Array], rows: Array) -> Array:
    """ByzFL on a copy: some of its rules write to their input, one divides by a distance of 0."""
    with np.errstate(divide="ignore"):
        return rule(rows.copy())


def close(result: Array, expected: Array, rows: Array) -> None:
    spread = np.abs(rows - rows[0]).max()
    np.testing.assert_allclose(result, expected, rtol=1e-14, atol=1e-9 * spread)


def column(*values: float) -> Array:
    return np.array(values, dtype=float)[:, None]


# --- the same answer ---------------------------------------------------------------------------
def with_pivot(rows: Array, f: int, pivot: Array) -> Array:
    """Mean of the n − f rows nearest to a point, by ByzFL's MoNNA with the point as a last row."""
    n = len(rows)
    with_it = theirs(byzfl.MoNNA(f, idx=n), np.vstack([rows, pivot]))
    return pivot + (n + 1 - f) * (with_it - pivot) / (n - f)


def clipped(rows: Array, f: int) -> Array:
    """Centred clipping of ByzFL, its origin moved to the median, its radius to the default one."""
    median = np.median(rows, axis=0)
    distance = np.sort(cdist(rows, median[None])[:, 0])
    radius = distance[ceil((1 - GOLDEN * f / len(rows)) * len(rows)) - 1]
    return median + theirs(byzfl.CenteredClipping(tau=float(radius)), rows - median)


def fixed_clipped(rows: Array, f: int) -> Array:
    median = np.median(rows, axis=0)
    return median + theirs(byzfl.CenteredClipping(L=3, tau=0.5), rows - median)


def smoothed(rows: Array, f: int) -> Array:
    """Weiszfeld's steps of ByzFL, its origin moved to the mean."""
    mean = rows.mean(axis=0)
    return mean + theirs(byzfl.GeometricMedian(nu=1e-6, T=3), rows - mean)


def over(mixing: Callable[[int], Callable[[Array], Array]], base: type) -> Reference:
    return lambda rows, f: theirs(lambda x: base()(mixing(f)(x)), rows)


def plain(make: Callable[[int], Callable[[Array], Array]]) -> Reference:
    return lambda rows, f: theirs(make(f), rows)


SAME: dict[str, Reference] = {
    "mean": plain(lambda f: byzfl.Average()),
    "cwmed": plain(lambda f: byzfl.Median()),
    "trimmed_mean": plain(byzfl.TrMean),
    "meamed": plain(byzfl.Meamed),
    "krum": plain(byzfl.Krum),
    "multi_krum": plain(byzfl.MultiKrum),
    "monna": plain(byzfl.MoNNA),
    "monna(pivot=2)": plain(lambda f: byzfl.MoNNA(f, idx=2)),
    "nnm(mean)": over(pre.NNM, byzfl.Average),
    "nnm(cwmed)": over(pre.NNM, byzfl.Median),
    "arc(mean)": over(pre.ARC, byzfl.Average),
    "arc(cwmed)": over(pre.ARC, byzfl.Median),
    "clipping(mean, threshold=2.0)": over(lambda f: pre.Clipping(2.0), byzfl.Average),
    "clipping(cwmed, threshold=2.0)": over(lambda f: pre.Clipping(2.0), byzfl.Median),
    # The next five are not ByzFL's rules, or start elsewhere: made from its parts.
    "ctma(cwmed)": lambda rows, f: with_pivot(rows, f, np.median(rows, axis=0)),
    "cge": lambda rows, f: with_pivot(rows, f, np.zeros(rows.shape[1])),
    "rfa": smoothed,
    "centered_clipping": clipped,
    "centered_clipping(radius=0.5, iterations=3)": fixed_clipped,
}


@pytest.mark.parametrize("name", SAME)
@HALF
@given(case=cases())
def test_equal_weights_give_the_answer_of_byzfl(name: str, case: tuple[Array, int]) -> None:
    rows, f = case
    close(ours(name, rows, f), SAME[name](rows, f), rows)


@given(case=weighted_rows("integers", "near", "floats"), data=st.data())
def test_equal_rows_and_tied_values_do_not_matter_to_mean_median_and_trimming(
    case: tuple[torch.Tensor, torch.Tensor], data: st.DataObject
) -> None:
    rows = case[0].numpy()
    f = data.draw(st.integers(0, (len(rows) - 1) // 2))
    for name in ("mean", "cwmed", "trimmed_mean", "arc(mean)", "clipping(cwmed, threshold=2.0)"):
        close(ours(name, rows, f), SAME[name](rows, f), rows)


@given(case=cases(least=1))
def test_numpy_and_scipy_give_the_same_median_and_trimmed_mean(case: tuple[Array, int]) -> None:
    rows, f = case
    close(ours("cwmed", rows), np.median(rows, axis=0), rows)
    # Half a row more: f/n · n may round below f, and SciPy rounds down.
    trimmed = stats.trim_mean(rows, (f + 0.4) / len(rows), axis=0)
    close(ours("trimmed_mean", rows, f), trimmed, rows)


def cost(rows: Array, z: Array) -> float:
    return float(np.linalg.norm(rows - z, axis=1).sum())


def minimised(rows: Array) -> Array:
    """Geometric median: the row at which the others' pull is at most 1, or what SciPy finds.

    BFGS from several starts, and Powell's hybrid method from the best, to the last digits.
    """

    def slope(z: Array) -> Array:
        away = z - rows
        return (away / np.linalg.norm(away, axis=1, keepdims=True).clip(1e-300)).sum(axis=0)

    def curvature(z: Array) -> Array:
        length = np.linalg.norm(z - rows, axis=1).clip(1e-300)
        unit = (z - rows) / length[:, None]
        return np.eye(len(z)) * (1 / length).sum() - (unit.T / length) @ unit

    for row in rows:
        if np.linalg.norm(slope(row)) <= 1:
            return row
    starts = (rows.mean(axis=0), np.median(rows, axis=0), rows[0] + 0.1)
    found = [
        optimize.minimize(lambda z: cost(rows, z), start, jac=slope, method="BFGS").x
        for start in starts
    ]
    best = min(found, key=lambda z: cost(rows, z))
    polished = optimize.root(slope, best, jac=curvature, tol=1e-15).x
    return min(best, polished, key=lambda z: np.linalg.norm(slope(z)))


@HALF
@given(case=cases(dims=(2, 3, 9)))
def test_scipy_finds_no_better_geometric_median(case: tuple[Array, int]) -> None:
    rows = case[0] - case[0].mean(axis=0)
    result, expected = ours("gm", rows), minimised(rows)
    assert cost(rows, result) <= cost(rows, expected) * (1 + 1e-12)
    close(result, expected, rows)
    around = with_pivot(rows, case[1], expected)
    close(ours("ctma(gm)", rows, case[1]), around, rows)


@given(case=cases(least=2))
def test_minimum_diameter_is_byzfls_where_one_set_has_it(case: tuple[Array, int]) -> None:
    rows, f = case
    found = sorted(
        pdist(rows[list(s)]).max() for s in combinations(range(len(rows)), len(rows) - f)
    )
    assume(len(found) == 1 or found[1] > found[0] * (1 + 1e-9))
    close(ours("mda", rows, f), theirs(byzfl.MDA(f), rows), rows)


@given(case=cases(), size=st.integers(1, 4), seed=st.integers(0, 9))
def test_bucketing_in_the_same_order_gives_byzfls_buckets(
    case: tuple[Array, int], size: int, seed: int
) -> None:
    rows = case[0][: len(case[0]) // size * size]
    assume(len(rows) > 0)
    order = keyed_order(torch.ones(len(rows)), seed).numpy()
    shuffle = SimpleNamespace(permutation=lambda x: x[order])
    with mock.patch.object(pre, "random_tool", return_value=shuffle):
        buckets = pre.Bucketing(size)(rows)
    expected = np.median(buckets, axis=0)
    close(ours(f"bucketing(cwmed, size={size}, seed={seed})", rows), expected, rows)


def selected(rows: Array, f: int) -> Array:
    """The n − 2f rows whose n − f − 1 nearest others are nearest, found once."""
    near = np.sort(cdist(rows, rows) ** 2, axis=1)[:, 1 : len(rows) - f]
    return rows[near.sum(axis=1).argsort()[: len(rows) - 2 * f]]


def selected_again(rows: Array, f: int) -> Array:
    """ByzFL's Krum run n − 2f times, each time without the rows that it has chosen."""
    left, chosen = rows, []
    for _ in range(len(rows) - 2 * f):
        best = theirs(byzfl.Krum(f), left)
        chosen.append(best)
        left = left[(left != best).any(axis=1)]
    return np.array(chosen)


def around_median(rows: Array, count: int) -> Array:
    near = np.abs(rows - np.median(rows, axis=0)).argsort(axis=0)[:count]
    return np.take_along_axis(rows, near, axis=0).mean(axis=0)


@given(case=cases(bulyan=True))
def test_bulyan_is_the_mean_around_the_median_of_the_rows_of_lowest_scores(
    case: tuple[Array, int],
) -> None:
    rows, f = case
    close(ours("bulyan", rows, f), around_median(selected(rows, f), len(rows) - 4 * f), rows)


def test_arc_clips_as_many_rows_as_byzfl_whatever_the_rounding_of_f_over_n() -> None:
    for n in range(1, 41):
        rows = np.arange(1.0, n + 1)[:, None] ** 2
        for f in range((n + 1) // 2):
            close(ours("arc(mean)", rows, f), SAME["arc(mean)"](rows, f), rows)


# --- unweighted means equal weights ------------------------------------------------------------
WHOLE = [
    name + "(cwmed)" if name in ("arc", "bucketing", "clipping", "ctma", "nnm") else name
    for name in discover()
]


def built(name: str) -> Aggregator:
    return build(name, byz_fraction=0.2)


@pytest.mark.parametrize("name", WHOLE)
@HALF
@given(case=weighted_rows("integers", "floats"))
def test_only_the_shares_of_the_weight_count_and_unweighted_means_equal_ones(
    name: str, case: tuple[torch.Tensor, torch.Tensor]
) -> None:
    rows, weights = case
    ones = torch.ones(len(rows), dtype=torch.int64)
    expected = built(name)(rows, ones).numpy()
    close(built(name)(rows, 3 * ones).numpy(), expected, rows.numpy())
    close(built(name)(rows, ones.double() * 0.1).numpy(), expected, rows.numpy())
    unweighted = built(name + "-unweighted")(rows, 1 + weights).numpy()
    np.testing.assert_array_equal(unweighted, expected)


# --- stated differences: each with both numbers ------------------------------------------------
def test_byzfls_geometric_median_is_three_steps_from_the_origin() -> None:
    far = column(1e4, 1e4, 1e4, 0)
    assert theirs(byzfl.GeometricMedian(), far)[0] == pytest.approx(2.69927, abs=1e-5)
    assert ours("gm", far)[0] == 1e4
    # ByzFL's own example: three rows on a line, of which the middle one is the median.
    line = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert theirs(byzfl.GeometricMedian(), line)[0] == pytest.approx(3.78788, abs=1e-5)
    assert ours("gm", line).tolist() == [4, 5, 6]


def test_byzfls_geometric_median_leaves_out_infinite_rows() -> None:
    rows = column(1, 1, np.inf)
    assert theirs(byzfl.GeometricMedian(), rows).tolist() == [1]
    assert np.isnan(ours("gm", rows)).all()


def test_byzfls_centred_clipping_starts_at_the_origin_and_remembers() -> None:
    rows, rule = column(10, 10, 10), byzfl.CenteredClipping(tau=1.0)
    assert [theirs(rule, rows)[0] for _ in range(3)] == [1, 2, 3]
    assert ours("centered_clipping(radius=1.0)", rows)[0] == 10
    with pytest.raises(TypeError):  # no start can be given: it would have to be of two types
        byzfl.CenteredClipping(m=np.zeros(1))


def test_two_rows_that_are_each_others_nearest_tie_in_krum() -> None:
    rows = column(0, 1, 10)
    assert theirs(byzfl.Krum(1), rows)[0] == 0
    assert theirs(byzfl.Krum(1), rows[::-1])[0] == 1
    assert ours("krum", rows, 1)[0] == ours("krum", rows[::-1], 1)[0] == 0.5


@pytest.mark.parametrize("name", ["multi_krum", "meamed", "monna", "nnm(mean)", "mda"])
def test_byzfl_breaks_ties_where_ours_are_symmetric(name: str) -> None:
    rows = column(0, 1, -1)
    reference = SAME.get(name, plain(byzfl.MDA))
    assert abs(reference(rows, 1)[0]) > 0.1
    assert abs(ours(name, rows, 1)[0]) < 1e-15


def test_sets_that_share_their_longest_distance_tie_in_general_position() -> None:
    rows = np.array([[0.0, 0], [4, 0], [2, 3], [2, -3]])
    np.testing.assert_allclose(theirs(byzfl.MDA(1), rows), [2, 1])
    np.testing.assert_allclose(theirs(byzfl.MDA(1), rows[::-1]), [2, -1])
    np.testing.assert_allclose(ours("mda", rows, 1), [2, 0], atol=1e-15)


def test_a_last_bucket_that_is_not_full_counts_as_a_full_one_in_byzfl() -> None:
    rows, seed = column(0, 0, 3), 0
    order = keyed_order(torch.ones(3), seed).numpy()
    rows[order] = rows.copy()  # so that 3 is alone
    shuffle = SimpleNamespace(permutation=lambda x: x[order])
    with mock.patch.object(pre, "random_tool", return_value=shuffle):
        assert pre.Bucketing(2)(rows).mean() == 1.5
    assert ours("bucketing(mean)", rows)[0] == 1


def test_the_published_krum_sums_over_one_neighbour_less_than_ours_and_byzfls() -> None:
    rows = column(0, 1, 2, 4, 5)
    near = np.sort((rows - rows.T) ** 2, axis=1)[:, 1:3]
    assert rows[near.sum(axis=1).argmin()] == 1
    assert theirs(byzfl.Krum(1), rows)[0] == ours("krum", rows, 1)[0] == 2


def test_bulyan_scores_once_and_the_published_rule_again_after_each_choice() -> None:
    rows = column(0, 1, 2, 3, 4, 6, 10)
    assert around_median(selected_again(rows, 1), 3)[0] == 3
    assert ours("bulyan", rows, 1)[0] == 2


@pytest.mark.parametrize("name", ["arc(mean)", "clipping(mean)"])
def test_byzfls_clipping_writes_to_its_input(name: str) -> None:
    rows, kept = column(1, 2, 3, 90), torch.tensor([[1.0], [2.0], [3.0], [90.0]])
    rule, longest = (pre.ARC(1), 3) if name == "arc(mean)" else (pre.Clipping(1.0), 1)
    rule(rows)
    assert rows[-1] == longest
    build(name, byz_fraction=0.25)(kept, torch.ones(4))
    assert kept[-1] == 90


def test_byzfl_rounds_float64_tensors_to_float32() -> None:
    rows = torch.full((1, 1), 2.0**24 + 1, dtype=torch.float64)
    assert byzfl.Average()(rows).tolist() == [2.0**24]
    assert build("mean")(rows, torch.ones(1)).tolist() == [2.0**24 + 1]


def test_scipys_trimmed_mean_may_cut_a_row_less_than_its_share() -> None:
    rows = np.arange(44.0)[:, None] ** 2
    assert stats.trim_mean(rows, 15 / 44)[0] == rows[14:-14].mean()
    assert ours("trimmed_mean", rows, 15)[0] == pytest.approx(rows[15:-15].mean(), rel=1e-12)


def test_the_document_has_a_line_for_every_rule() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    names = {line.split("`")[1].partition("(")[0] for line in lines if line.startswith("| `")}
    assert names == set(discover())
