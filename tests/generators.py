"""Everything that tests draw at random: weighted rows, what is done to them, and the rules."""

from collections.abc import Callable
from dataclasses import fields
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from flwr_byzasync.aggregators import Aggregator, build, discover

MAX_ROWS = 7
SIZES = (1, 2, 3, 4, 9)  # 9: more coordinates than rows


class Weighted(NamedTuple):
    """Rows (m, d) in float64 with integer weights (m,) of positive sum."""

    rows: Tensor
    weights: Tensor


# --- rows --------------------------------------------------------------------------------------
def _integers(shape: tuple[int, ...], largest: int) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.int64, shape, elements=st.integers(-largest, largest))


def _scattered(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    return _integers((m, d), 9)


def _ties(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    return _integers((m, d), 1)


def _collinear(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    parts = (_integers((d,), 9), _integers((m,), 3), _integers((d,), 2))
    return st.builds(lambda start, steps, v: start + np.outer(steps, v), *parts)


def _clusters(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    parts = (_integers((2, d), 9), hnp.arrays(np.int64, m, elements=st.integers(0, 1)))
    return st.builds(lambda pool, which, near: pool[which] + near, *parts, _integers((m, d), 1))


def _duplicates(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    parts = (_integers((3, d), 4), hnp.arrays(np.int64, m, elements=st.integers(0, 2)))
    return st.builds(lambda pool, which: pool[which], *parts)


PLACEMENTS: tuple[Callable[[int, int], st.SearchStrategy[np.ndarray]], ...] = (
    _scattered,
    _ties,
    _collinear,
    _clusters,
    _duplicates,
)


@st.composite
def integer_rows(draw: st.DrawFn, m: int, d: int) -> np.ndarray:
    """Rows on which translation and scaling by powers of two are exact."""
    return draw(draw(st.sampled_from(PLACEMENTS))(m, d)).astype(np.float64)


@st.composite
def far_rows(draw: st.DrawFn, m: int, d: int) -> np.ndarray:
    """Integer rows, some of which are moved far away, or close together around a far point."""
    rows = draw(integer_rows(m, d))
    scales = st.sampled_from((1.0, 1.0, 1.0, 1e-3, 1e3, 1e6, 1e20, 1e90))
    factors = draw(hnp.arrays(np.float64, (m, 1), elements=scales))
    return rows * factors + draw(st.sampled_from((0.0, 0.0, 500.0)))


@st.composite
def float_rows(draw: st.DrawFn, m: int, d: int) -> np.ndarray:
    """Rows whose sums and differences round."""
    # Values of float32, whose squares float64 holds: below 1e-150 rows count as equal.
    unit = hnp.arrays(np.float32, (m, d), elements=st.floats(-1.0, 1.0, width=32))
    return draw(unit) * np.float64(draw(st.sampled_from((1e-6, 1.0, 1.0, 1e6))))


# --- weights -----------------------------------------------------------------------------------
def _counts(m: int) -> st.SearchStrategy[np.ndarray]:
    some = hnp.arrays(np.int64, m, elements=st.integers(0, 4))
    return some.map(lambda w: w if w.any() else w + 1)


def _half(m: int) -> st.SearchStrategy[np.ndarray]:
    """One row holds exactly half of the weight."""
    counts = hnp.arrays(np.int64, m, elements=st.integers(1, 3))
    return counts.map(lambda w: np.append(w[:-1], max(1, w[:-1].sum())))


def _equal(m: int) -> st.SearchStrategy[np.ndarray]:
    return st.just(np.ones(m, dtype=np.int64))


@st.composite
def counts(draw: st.DrawFn, m: int) -> np.ndarray:
    """Integer weights: zeros, equal ones, exact halves; the sum is positive."""
    return draw(draw(st.sampled_from((_counts, _half, _equal)))(m))


Placement = Callable[[int, int], st.SearchStrategy[np.ndarray]]


@st.composite
def weighted(draw: st.DrawFn, placement: Placement = integer_rows) -> Weighted:
    """Draw rows from `placement` and counts for them."""
    m, d = draw(st.integers(1, MAX_ROWS)), draw(st.sampled_from(SIZES))
    rows, weights = draw(placement(m, d)), draw(counts(m))
    return Weighted(torch.from_numpy(rows), torch.from_numpy(weights))


# --- with something to do to them --------------------------------------------------------------
@st.composite
def permuted(draw: st.DrawFn) -> tuple[Weighted, list[int]]:
    """Weighted rows and another order of them."""
    case = draw(weighted())
    return case, draw(st.permutations(range(len(case.weights))))


@st.composite
def translated(draw: st.DrawFn) -> tuple[Weighted, Tensor]:
    """Integer rows and an integer vector; with a long one, rounding blurs near ties."""
    case = draw(weighted())
    vector = draw(_integers((case.rows.shape[1],), 9)) * draw(st.sampled_from((1, 2**8)))
    return case, torch.from_numpy(vector.astype(np.float64))


def scaled() -> st.SearchStrategy[tuple[Weighted, float]]:
    """Weighted rows and a power of two."""
    return st.tuples(weighted(), st.sampled_from((2.0**-30, 0.5, 4.0, 2.0**30)))


def equal_rows() -> st.SearchStrategy[Weighted]:
    """One float vector in every row."""
    return weighted(float_rows).map(
        lambda case: Weighted(case.rows[:1].repeat(len(case.rows), 1), case.weights)
    )


@st.composite
def with_share(draw: st.DrawFn) -> tuple[Weighted, Fraction]:
    """Weighted rows and λ: a round number, or exactly the share of some of the rows."""
    case = draw(weighted(draw(st.sampled_from((integer_rows, far_rows, float_rows)))))
    total, byzantine = int(case.weights.sum()), 0
    for weight in draw(st.permutations(case.weights.tolist())):
        if 2 * (byzantine + weight) < total:
            byzantine += weight
    usual = (Fraction(1, 10), Fraction(1, 4), Fraction(2, 5), Fraction(9, 20))
    return case, draw(st.sampled_from((*usual, Fraction(byzantine, total))))


# --- rules -------------------------------------------------------------------------------------
@cache
def rule_names() -> tuple[str, ...]:
    """Every rule as `build` writes it: alone, over every other, nested once, unweighted."""
    takes_base = {
        name: "base" in {field.name for field in fields(rule)}  # type: ignore[arg-type]
        for name, rule in discover().items()
    }
    plain = [name for name, base in takes_base.items() if not base]
    meta = [name for name, base in takes_base.items() if base]
    over = [f"{outer}({inner})" for outer in meta for inner in plain]
    nested = [f"{outer}({inner}({plain[0]}))" for outer in meta for inner in meta]
    unweighted = [f"{name}-unweighted" for name in (*plain, *over[:1])]
    return (*plain, *over, *nested, *unweighted)


def every_rule(lam: float = 0.25) -> dict[str, Aggregator]:
    """Return every rule by name, built for the Byzantine share `lam`."""
    return {name: build(name, byz_fraction=lam) for name in rule_names()}
