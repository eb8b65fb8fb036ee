"""Krum, Multi-Krum, Bulyan and MDA: formulas, constants, and counterexamples."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import combinations, pairwise
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, target
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flwr_byzasync.aggregators import (
    MDA,
    Aggregator,
    Bulyan,
    Krum,
    Mean,
    MultiKrum,
    build,
    cliques,
)
from flwr_byzasync.aggregators.bulyan import bulyan_bound
from flwr_byzasync.aggregators.krum import krum_bound
from flwr_byzasync.aggregators.mda import ball_diameter_bound, diameter_bound
from flwr_byzasync.aggregators.multi_krum import multi_krum_bound, small_share_bound
from flwr_byzasync.aggregators.selection import TIE
from flwr_byzasync.audit.inequality import admissible, ratio
from flwr_byzasync.errors import ConfigError

Array = np.ndarray
SHARES = (0.05, 0.1, 0.2, 0.24, 0.3, 0.4, 0.45)


@st.composite
def cases(
    draw: st.DrawFn, scales: tuple[float, ...] = (1.0, 1.0, 1e-3, 1e6)
) -> tuple[Array, Array]:
    """Integer rows, near ones or far ones among them, and positive counts.

    With scales of 1 and 1000 distances are equal or differ by more than `TIE`.
    """
    m, d = draw(st.integers(1, 7)), draw(st.sampled_from((1, 2, 3, 9)))
    rows = draw(hnp.arrays(np.int64, (m, d), elements=st.integers(-6, 6))).astype(float)
    factors = hnp.arrays(float, (m, 1), elements=st.sampled_from(scales))
    counts = draw(hnp.arrays(np.int64, m, elements=st.integers(1, 4)))
    return rows * draw(factors), counts


def call(rule: Aggregator, rows: Array, weights: Array) -> Array:
    return rule(torch.from_numpy(rows), torch.from_numpy(np.asarray(weights))).numpy()


def distances(rows: Array) -> Array:
    return np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(axis=2))


def close(result: Array, expected: Array, rows: Array) -> None:
    spread = np.abs(rows - rows[0]).max()
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-9 * spread)


# --- formulas, row by row ----------------------------------------------------------------------
def fill(order: Array, keys: Array, weights: Array, target_weight: float) -> Array:
    """Weights taken in the order of `keys` until they hold `target_weight`; equal keys share."""
    taken = np.zeros(len(weights))
    while target_weight > 1e-12 * weights.sum():
        key = min(keys[i] for i in order if taken[i] == 0)
        tied = [i for i in order if taken[i] == 0 and keys[i] <= key * (1 + TIE) + 1e-300]
        part = min(1.0, target_weight / weights[tied].sum())
        taken[tied] = part * weights[tied]
        target_weight -= taken[tied].sum()
    return taken


def scores_by_hand(rows: Array, weights: Array, lam: float) -> Array:
    squares, everyone = distances(rows) ** 2, np.arange(len(rows))
    target_weight = (1 - lam) * weights.sum()
    return np.array([fill(everyone, row, weights, target_weight) @ row for row in squares])


def krum_by_hand(rows: Array, weights: Array, lam: float) -> Array:
    scores = scores_by_hand(rows, weights, lam)
    best = scores <= scores.min() * (1 + TIE)
    return weights[best] @ rows[best] / weights[best].sum()


def selected_by_hand(rows: Array, weights: Array, lam: float, share: float) -> Array:
    scores = scores_by_hand(rows, weights, lam)
    return fill(np.arange(len(rows)), scores, weights, share * weights.sum())


def multi_krum_by_hand(rows: Array, weights: Array, lam: float) -> Array:
    kept = selected_by_hand(rows, weights, lam, 1 - lam)
    return kept @ rows / kept.sum()


def bulyan_by_hand(rows: Array, weights: Array, lam: float) -> Array:
    kept = selected_by_hand(rows, weights, lam, 1 - 2 * lam)
    means = []
    for y in rows.T:
        values = np.unique(y[kept > 0])
        half = kept.sum() / 2 * (1 + TIE)
        fits = [v for v in values if max(kept[y < v].sum(), kept[y > v].sum()) <= half]
        away = np.abs(y - (fits[0] + fits[-1]) / 2)
        near = fill(np.flatnonzero(kept), away, kept, (1 - 4 * lam) * weights.sum())
        means.append(near @ y / near.sum())
    return np.array(means)


def mda_by_hand(rows: Array, weights: Array, lam: float) -> Array:
    """Every set of rows, looked at one by one."""
    away, m = distances(rows), len(rows)
    target_weight = (1 - lam) * weights.sum() * (1 - TIE)
    sets = [list(c) for k in range(1, m + 1) for c in combinations(range(m), k)]
    heavy = [c for c in sets if weights[c].sum() >= target_weight]
    least = min(away[np.ix_(c, c)].max() for c in heavy) * (1 + TIE)
    tight = [c for c in heavy if away[np.ix_(c, c)].max() <= least]
    largest = [c for c in tight if not any(set(c) < set(other) for other in tight)]
    total = sum(weights[c] @ rows[c] for c in largest)
    return total / sum(weights[c].sum() for c in largest)


def balls_by_hand(rows: Array, weights: Array, lam: float) -> Array:
    away, target_weight = distances(rows), (1 - lam) * weights.sum() * (1 - TIE)
    radii = [min(r for r in row if weights[row <= r].sum() >= target_weight) for row in away]
    least = min(radii) * (1 + TIE)
    centres = [i for i, radius in enumerate(radii) if radius <= least]
    means = [
        np.average(rows[away[i] <= least], axis=0, weights=weights[away[i] <= least])
        for i in centres
    ]
    return np.average(means, axis=0, weights=weights[centres])


BY_HAND: dict[str, Callable[[Array, Array, float], Array]] = {
    "krum": krum_by_hand,
    "multi_krum": multi_krum_by_hand,
    "bulyan": bulyan_by_hand,
    "mda": mda_by_hand,
    "mda(max_rows=1)": balls_by_hand,
}


@pytest.mark.parametrize("name", BY_HAND)
@given(case=cases(scales=(1.0, 1e3)), lam=st.sampled_from(SHARES))
def test_a_rule_is_its_formula(name: str, case: tuple[Array, Array], lam: float) -> None:
    rows, weights = case
    if name == "bulyan":
        lam = min(lam, 0.24)
    rule = MDA(lam, max_rows=1) if name.endswith(")") else build(name, byz_fraction=lam)
    # One distinct row is no more than max_rows.
    assume(not name.endswith(")") or bool((rows != rows[0]).any()))
    close(call(rule, rows, weights), BY_HAND[name](rows, weights, lam), rows)


@given(case=cases())
def test_multi_krum_of_a_small_share_is_krum(case: tuple[Array, Array]) -> None:
    rows, weights = case
    close(call(MultiKrum(0.3, share=1e-3), rows, weights), call(Krum(0.3), rows, weights), rows)


def test_krum_returns_one_of_the_rows_to_the_bit() -> None:
    rows = np.random.default_rng(3).standard_normal((9, 40)).astype(np.float32)
    result = call(Krum(0.3), rows, np.arange(1, 10))
    assert sum(np.array_equal(result, row) for row in rows) == 1


def test_equal_weights_select_as_the_published_multi_krum_with_one_more_neighbour() -> None:
    rng, n, f = np.random.default_rng(4), 10, 3
    rows = rng.standard_normal((n, 5))
    scores = np.sort(distances(rows) ** 2, axis=1)[:, : n - f].sum(axis=1)
    expected = rows[np.argsort(scores)[: n - f]].mean(axis=0)
    close(call(MultiKrum(f / n), rows, np.ones(n)), expected, rows)


# --- the constants -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["krum", "multi_krum", "bulyan"])
@given(case=cases(), lam=st.sampled_from(SHARES))
def test_the_constant_holds_for_every_admissible_set(
    name: str, case: tuple[Array, Array], lam: float
) -> None:
    lam = min(lam, 0.24) if name == "bulyan" else lam
    rule = build(name, byz_fraction=lam)
    constant = rule.bound(lam)  # type: ignore[attr-defined]
    reached = ratio(rule, *map(torch.from_numpy, case), lam)
    target(reached)
    assert reached <= constant * (1 + 1e-9)


@given(case=cases(), lam=st.sampled_from(SHARES), part=st.sampled_from((0.01, 0.5, 0.9)))
def test_a_smaller_share_keeps_its_own_constant(
    case: tuple[Array, Array], lam: float, part: float
) -> None:
    rule = MultiKrum(lam, share=part * (1 - lam))
    assert rule.bound(lam) == small_share_bound(lam)
    assert ratio(rule, *map(torch.from_numpy, case), lam) <= small_share_bound(lam) * (1 + 1e-9)


def reached_by(rule: Aggregator, rows: Array, weights: Array, honest: int) -> float:
    """‖A − x̄_G‖²/ρ² where the first rows are honest."""
    share = weights[:honest] / weights[:honest].sum()
    mean = share @ rows[:honest]
    variance = share @ ((rows[:honest] - mean) ** 2).sum(axis=1)
    return float(((call(rule, rows, weights) - mean) ** 2).sum() / variance)


def krum_witness(lam: float) -> tuple[Array, Array, int]:
    """Rows of docs/theory/krum.md: ω in m rows, τ, the liars, one light liar that is chosen."""
    q, m, spread, offset = 1 - 2 * lam, 1, 0.0, 1e-3
    a = sqrt(lam / q)
    behind, far, z = -1 / a, 2 * a + 1 / a, 3 * a
    if lam > 1 / 3:
        z = far
    if lam < 1 / 4:
        m, offset, p = 400, 4e-3, sqrt((1 - lam) / (1 + 2 * lam))
        a, spread = 2 * lam * p / q, p * sqrt(1 - 4 * lam) / q
        behind, far, z = -2 * p, 2 * (a + p), 2 * a + p
    rows = np.zeros((m + 3, m + 1))
    rows[:m, :m] = spread * (np.eye(m) - 1 / m)
    rows[:m, -1], rows[m:, -1] = a, (behind, far, z)
    moved = slice(m + 2, None) if 1 / 4 <= lam <= 1 / 3 else slice(m + 1, None)
    rows[moved, -1] -= offset * (rows[moved, -1] - a)
    weights = np.append(np.full(m, q / m), (lam, 0.999 * lam, 0.001 * lam))
    return rows, weights, m + 1


@pytest.mark.parametrize("lam", [0.05, 0.1, 0.2, 0.25, 0.28, 1 / 3, 0.36, 0.4, 0.45])
def test_the_constant_of_krum_is_sharp(lam: float) -> None:
    constant, reached = krum_bound(lam), reached_by(Krum(lam), *krum_witness(lam))
    assert 0.99 * constant < reached <= constant


def test_the_pieces_of_the_constant_of_krum_meet() -> None:
    assert krum_bound(0.0) == 1.0
    for knot in (1 / 4, 1 / 3):
        assert krum_bound(knot - 1e-9) == pytest.approx(krum_bound(knot + 1e-9), rel=1e-7)
        assert multi_krum_bound(knot - 1e-9) == pytest.approx(multi_krum_bound(knot + 1e-9))


@pytest.mark.parametrize("lam", [0.05, 0.1, 0.2, 0.3, 0.33])
def test_the_constant_of_multi_krum_is_sharp_up_to_a_third(lam: float) -> None:
    q = 1 - 2 * lam
    near, behind, far = sqrt(lam / q), -sqrt(q / lam), 0.999 / sqrt(lam * q)
    rows, weights = np.array([[near], [behind], [far]]), np.array([q, lam, lam])
    reached = reached_by(MultiKrum(lam), rows, weights, 2)
    assert 0.99 * 4 * lam / q < reached <= multi_krum_bound(lam)


@pytest.mark.parametrize("lam", SHARES)
def test_published_constants_are_above_ours(lam: float) -> None:
    assert (
        krum_bound(lam)
        < Krum(lam).published(lam)
        == pytest.approx(  # type: ignore[operator]
            6 * (1 - lam) / (1 - 2 * lam)
        )
    )


@pytest.mark.parametrize("rule", [Krum(0.2), MultiKrum(0.2), Bulyan(0.2)], ids=repr)
def test_a_bound_covers_shares_up_to_the_expected_one_and_no_more(rule: Krum) -> None:
    assert rule.bound(0.1) == rule.bound(0.2) is not None
    assert rule.bound(0.21) is None


def test_the_constant_of_bulyan_starts_at_zero_and_stays_finite() -> None:
    grid = np.linspace(0, 0.25, 200, endpoint=False)
    constants = [bulyan_bound(lam) for lam in grid]
    assert constants[0] == 0.0 and constants[-1] < 7.0
    assert all(a < b for a, b in pairwise(constants))


# --- MDA: diameters ----------------------------------------------------------------------------
def worst_of_diameter(rule: Aggregator, rows: Array, weights: Array, lam: float) -> float:
    """The largest ‖A − x̄_G‖ / (diameter of G + rounding) over every admissible G."""
    away, result, worst = distances(rows), call(rule, rows, weights), 0.0
    for inside in admissible(weights.tolist(), Fraction(str(lam))):
        mean = np.average(rows[inside], axis=0, weights=weights[inside])
        off = max(0.0, float(np.linalg.norm(result - mean)) - 1e-9 * np.abs(rows).max())
        diameter = away[np.ix_(inside, inside)].max()
        worst = max(worst, off / max(diameter, 1e-300))
    return worst


@pytest.mark.parametrize("max_rows", [24, 1])
@given(case=cases(), lam=st.sampled_from(SHARES))
def test_mda_is_within_its_share_of_the_diameter(
    max_rows: int, case: tuple[Array, Array], lam: float
) -> None:
    constant = diameter_bound(lam) if max_rows > 7 else ball_diameter_bound(lam)
    assert worst_of_diameter(MDA(lam, max_rows), *case, lam) <= constant * (1 + 1e-9)


@pytest.mark.parametrize("lam", SHARES)
def test_the_diameter_constant_of_mda_is_sharp(lam: float) -> None:
    rows, weights = np.array([[0.0], [-1.0], [0.999]]), np.array([1 - 2 * lam, lam, lam])
    off = call(MDA(lam), rows, weights)[0] + lam / (1 - lam)
    assert 0.99 * diameter_bound(lam) < off <= diameter_bound(lam)


@pytest.mark.parametrize("light", [1e-3, 1e-6, 1e-9])
def test_a_light_honest_row_far_away_ruins_every_constant_of_mda_in_rho(light: float) -> None:
    lam, far = 0.3, 1.0
    rows = np.array([[0.0], [far], [-far * (1 - light)]])
    weights = np.array([1 - lam - light, light, lam])
    reached = reached_by(MDA(lam), rows, weights, 2)
    assert MDA(lam).bound(lam) is None and reached > 0.9 * lam**2 * (1 - lam) / light
    assert reached_by(MultiKrum(lam), rows, weights, 2) < multi_krum_bound(lam)


@given(case=cases(), lam=st.sampled_from(SHARES))
def test_with_a_lightest_row_mda_has_a_constant(case: tuple[Array, Array], lam: float) -> None:
    weights = case[1]
    constant = 8 * lam**2 / (1 - lam) ** 2 * weights.sum() / weights.min()
    assert ratio(MDA(lam), *map(torch.from_numpy, case), lam) <= constant * (1 + 1e-9)


def opposite(n: int) -> Array:
    """n/2 pairs of opposite points on the axes: as many rows as can be left out in 2^(n/2) ways."""
    return np.concatenate([np.eye(n // 2), -np.eye(n // 2)])


def counting_masks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the masks that the search reads: a measure of its length on any machine."""
    visited: list[int] = []
    members = cliques.members

    def recorded(mask: int) -> Iterator[int]:
        visited.append(mask)
        return members(mask)

    monkeypatch.setattr(cliques, "members", recorded)
    return visited


@pytest.mark.parametrize("rows", [np.eye(20), opposite(20), opposite(32)], ids=len)
def test_the_search_over_rows_with_many_cliques_is_bounded(
    rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    visited = counting_masks(monkeypatch)
    result = call(MDA(0.45, max_rows=32), rows, np.ones(len(rows)))
    assert np.isfinite(result).all() and len(visited) < 1_000_000


def test_the_search_over_seventeen_rows_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, rule, visited = np.random.default_rng(1), MDA(0.45), counting_masks(monkeypatch)
    for _ in range(5):
        call(rule, rng.standard_normal((17, 30)), rng.integers(1, 20, 17))
    assert 0 < len(visited) < 5 * 2_000


def test_more_rows_than_max_rows_fall_back_to_a_ball_and_copies_do_not_count() -> None:
    rows = np.array([[-1.0], [0.0], [0.8], [1.7], [50.0]])
    ones = np.ones(5)
    assert call(MDA(0.3), rows, ones)[0] == pytest.approx(0.375)
    # The ball of radius 1.7 around 0 is the smallest that holds 3.5 rows.
    assert call(MDA(0.3, max_rows=4), rows, ones)[0] == pytest.approx(0.375)
    twice = np.repeat(rows, 2, axis=0)
    assert np.array_equal(
        call(MDA(0.3, max_rows=5), twice, np.ones(10)), call(MDA(0.3), rows, ones)
    )


# --- controls ----------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", [Krum(0.3), MultiKrum(0.3), Bulyan(0.2), MDA(0.3)], ids=repr)
def test_liars_within_the_share_cannot_move_a_rule_far_and_do_move_the_mean(
    rule: Aggregator,
) -> None:
    honest = np.random.default_rng(5).standard_normal((8, 3))
    rows = np.concatenate([honest, np.full((2, 3), 1e9)])
    assert np.linalg.norm(call(rule, rows, np.ones(10))) < 3.0
    assert np.linalg.norm(call(Mean(), rows, np.ones(10))) > 1e8


@pytest.mark.parametrize("rule", [Krum(0.2), MultiKrum(0.2), MDA(0.2)], ids=repr)
def test_liars_beyond_the_share_win(rule: Aggregator) -> None:
    """Six liars of ten who agree, against honest rows that do not."""
    honest = np.random.default_rng(6).standard_normal((4, 3))
    rows = np.concatenate([honest, np.full((6, 3), 1e6)])
    assert np.linalg.norm(call(rule, rows, np.ones(10))) > 1e5


def test_krum_that_looks_at_too_few_neighbours_breaks_the_constant() -> None:
    """Scored by the nearest λ of the weight, liars who agree win wherever they are."""

    def few(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        scores = scores_by_hand(rows.numpy(), weights.numpy(), 0.7)
        return rows[int(scores.argmin())]

    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [1e6], [1e6], [1e6]])
    rows, weights = rows.double(), torch.ones(10, dtype=torch.float64)
    assert ratio(few, rows, weights, 0.3) > 1e9
    assert ratio(Krum(0.3), rows, weights, 0.3) <= krum_bound(0.3)


@pytest.mark.parametrize("lam", [0.25, 0.3, 0.49])
def test_bulyan_refuses_a_quarter_and_names_what_is_legal(lam: float) -> None:
    for make in (Bulyan, lambda share: build("bulyan", byz_fraction=share)):
        with pytest.raises(ConfigError, match=r"byz_fraction=0.*in \[0, 0.25\)"):
            make(lam)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Krum(0.5), "byz_fraction"),
        (lambda: MultiKrum(0.3, share=0.71), "share"),
        (lambda: MultiKrum(0.3, share=0.0), "share"),
        (lambda: MDA(-0.1), "byz_fraction"),
        (lambda: MDA(0.3, max_rows=0), "max_rows"),
        (lambda: MDA(0.3, max_rows=33), "max_rows"),
        (lambda: MDA(0.3, max_rows=2.0), "max_rows"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_named(make: Callable[[], Aggregator], argument: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.argument == argument


@settings(max_examples=20)
@given(case=cases(), far=st.sampled_from((1e6, 1e12, 1e90)))
def test_close_rows_of_large_norm_lose_no_digit_beside_a_far_row(
    case: tuple[Array, Array], far: float
) -> None:
    """Rows 500 + 1e-4 x and 500 + 1e-4 (x + 1) give results 1e-4 apart, to a thousandth."""
    rows, weights = case[0] % 7, case[1]
    base, step = np.float64(2.0**9), 2.0**-13
    close_by = base + step * np.concatenate([rows, rows, rows, rows])
    liar = np.full_like(rows[:1], far)
    everyone = np.concatenate([close_by, liar])
    counts = np.append(np.tile(weights, 4), 1)
    for rule in (Krum(0.2), MultiKrum(0.2), Bulyan(0.2), MDA(0.2)):
        alone = call(rule, np.concatenate([close_by - base, liar]), counts)
        np.testing.assert_allclose(
            call(rule, everyone, counts) - base, alone, rtol=0, atol=1e-3 * step
        )


def test_rounding_of_a_full_neighbourhood_does_not_reach_for_a_far_row() -> None:
    """Found by the worst-case search: 1e-16 of the weight, times 1e20, outweighed the scores."""
    rows = torch.tensor([[0.0], [0.0], [0.0], [1.0], [1e10]], dtype=torch.float64)
    weights = torch.tensor([1, 5, 1, 2, 1])
    assert float(Krum(0.1)(rows, weights)) == 0.0
    assert abs(float(MultiKrum(0.1)(rows, weights))) <= 1.0
