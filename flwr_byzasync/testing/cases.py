"""Hypothesis strategies for weighted rows, and for the transformations that laws apply."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

MAX_ROWS = 7
"""2^7 sets of rows may be honest; broken laws show with this few rows."""
SIZES = (1, 2, 3, 4, 9)
"""Numbers of coordinates; 9 exceeds the number of rows."""
Placement = Callable[[int, int], st.SearchStrategy[np.ndarray]]


class Weighted(NamedTuple):
    """Rows (m, d) in float64 with integer weights (m,) of positive sum."""

    rows: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Trial:
    """Weighted rows, and the transformations that the laws apply to them.

    Parameters
    ----------
    case : Weighted
        Rows and weights.
    order : tuple of int
        Another order of the rows.
    vector : Tensor
        (d,) integers in float64, to translate the rows by.
    factor : float
        A power of two, to scale the rows by.
    weight_factor : float
        To scale the weights by; an int keeps them integers.
    filling : float
        Value of rows of weight zero.
    """

    case: Weighted
    order: tuple[int, ...]
    vector: Tensor
    factor: float
    weight_factor: float
    filling: float


# --- rows --------------------------------------------------------------------------------------
def _numbers(shape: tuple[int, ...], kind: str) -> st.SearchStrategy[np.ndarray]:
    """Draw integers of a fixed size; one draw of bytes per row is ten times as fast."""
    size = shape[-1] * np.dtype(kind).itemsize
    rows = st.tuples(*[st.binary(min_size=size, max_size=size)] * prod(shape[:-1]))
    return rows.map(
        lambda drawn: np.frombuffer(b"".join(drawn), dtype=kind).astype(np.int64).reshape(shape)
    )


def _below(shape: tuple[int, ...], end: int) -> st.SearchStrategy[np.ndarray]:
    """Draw integers in ``0 .. end − 1``."""
    return _numbers(shape, "u1").map(lambda drawn: drawn % end)


def integers(shape: tuple[int, ...], largest: int) -> st.SearchStrategy[np.ndarray]:
    """Draw integers in ``−largest .. largest``; they shrink in the order ..., 2, −1, 1, 0."""
    signs = np.array((-1, 1))
    return _below(shape, 2 * largest + 1).map(lambda n: (n + 1) // 2 * signs[n % 2])


def _scattered(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    return integers((m, d), 9)


def _ties(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    return integers((m, d), 1)


def _collinear(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    parts = (integers((d,), 9), integers((m,), 3), integers((d,), 2))
    return st.builds(lambda start, steps, v: start + np.outer(steps, v), *parts)


def _clusters(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    parts = (integers((2, d), 9), _below((m,), 2))
    return st.builds(lambda pool, which, near: pool[which] + near, *parts, integers((m, d), 1))


def _duplicates(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    parts = (integers((3, d), 4), _below((m,), 3))
    return st.builds(lambda pool, which: pool[which], *parts)


PLACEMENTS: tuple[Placement, ...] = (_scattered, _ties, _collinear, _clusters, _duplicates)


@st.composite
def integer_rows(draw: st.DrawFn, m: int, d: int) -> np.ndarray:
    """Draw rows on which translation and scaling by powers of two are exact."""
    rows: np.ndarray = draw(draw(st.sampled_from(PLACEMENTS))(m, d)).astype(np.float64)
    return rows


@st.composite
def far_rows(draw: st.DrawFn, m: int, d: int) -> np.ndarray:
    """Draw integer rows, some scaled far away, or all shifted close to a far point."""
    rows: np.ndarray = draw(integer_rows(m, d))
    scales = np.array((1.0, 1.0, 1.0, 1e-3, 1e3, 1e6, 1e20, 1e90))
    factors = scales[draw(_below((m, 1), len(scales)))]
    rows = rows * factors + draw(st.sampled_from((0.0, 0.0, 500.0)))
    return rows


@st.composite
def near_ties(draw: st.DrawFn, m: int, d: int) -> np.ndarray:
    """Draw integer rows with tiny offsets, near the origin or as far as float32 resolves them."""
    rows: np.ndarray = draw(integer_rows(m, d))
    offset: np.ndarray = draw(integers((m, d), 2))
    far, size = draw(st.sampled_from(((0.0, 1e-7), (0.0, 1e-3), (500.0, 1e-4))))
    if far:
        rows = 0.05 * draw(_below((m, 1), 2)) * rows
    return rows + far + size * offset


@st.composite
def float_rows(draw: st.DrawFn, m: int, d: int) -> np.ndarray:
    """Draw rows whose sums and differences round."""
    # 23 bits at exponents of 0 to −31: values of float32 with squares that float64 holds.
    drawn = draw(_numbers((m, d), "i4"))
    unit: np.ndarray = np.ldexp((drawn >> 8) / 2.0**23, -(drawn & 31))
    return unit * draw(st.sampled_from((1e-6, 1.0, 1.0, 1e6)))


KINDS: dict[str, Placement] = {
    "integers": integer_rows,
    "far": far_rows,
    "near": near_ties,
    "floats": float_rows,
}


# --- weights -----------------------------------------------------------------------------------
@st.composite
def counts(draw: st.DrawFn, m: int, most: int) -> np.ndarray:
    """Draw integer weights: with zeros, equal, or with exact halves; the sum is positive."""
    kind = draw(st.sampled_from(("some", "some", "half", "equal")))
    drawn = np.array(draw(st.tuples(*[st.integers(0, 4)] * most))[-m:])
    if kind == "equal" or not drawn.any():
        return np.ones(m, dtype=np.int64)
    if kind == "half":  # the last row holds as much as all others
        drawn = 1 + drawn % 3
        drawn[-1] = max(1, drawn[:-1].sum())
    return drawn


# --- weighted rows -----------------------------------------------------------------------------
@st.composite
def weighted_rows(
    draw: st.DrawFn,
    *kinds: str,
    max_rows: int = MAX_ROWS,
    sizes: Sequence[int] = SIZES,
    trusted: Sequence[int] = (),
) -> Weighted:
    """Draw rows and integer weights for them.

    Parameters
    ----------
    *kinds : str
        Kinds of rows to draw from; ``"integers"`` by default. ``"integers"``: small
        integers, scattered, tied, collinear, in two clusters, duplicated; translation and
        scaling by powers of two are exact on them. ``"far"``: some of them up to 1e90 away.
        ``"near"``: near ties, also rows of norm 500 that differ by 1e-4. ``"floats"``: float32
        values, whose sums round.
    max_rows : int, default 7
        Largest m.
    sizes : sequence of int
        Candidates for d.
    trusted : sequence of int
        Rows that must exist and have positive weight.

    Returns
    -------
    strategy of Weighted
        A pair ``rows, weights``: (m, d) float64 and (m,) int64 with zeros, equal weights and
        exact halves; some weight is positive.

    Examples
    --------
    >>> from hypothesis import given
    >>> @given(case=weighted_rows("far", "near", max_rows=4))
    ... def rows_are_finite(case):
    ...     assert case.rows.isfinite().all() and len(case.rows) == len(case.weights) <= 4
    >>> rows_are_finite()
    """
    least = max(trusted, default=0) + 1
    most = max(least, max_rows)
    # Shrink towards two rows: with one, hardly any law can fail.
    m = draw(st.sampled_from(sorted(range(least, most + 1), key=lambda m: (m == 1, m))))
    d = draw(st.sampled_from(sizes))
    kind = draw(st.sampled_from(kinds or ("integers",)))
    # Always draw a block of the same size, so that a smaller m shrinks instead of redrawing; use
    # its end, where shrinking leaves the nonzero values.
    rows, weights = draw(KINDS[kind](most, max(sizes)))[-m:, -d:], draw(counts(m, most))
    weights[list(trusted)] = np.maximum(weights[list(trusted)], 1)
    return Weighted(torch.from_numpy(rows.copy()), torch.from_numpy(weights))


@st.composite
def trials(
    draw: st.DrawFn, *kinds: str, max_rows: int = MAX_ROWS, trusted: Sequence[int] = ()
) -> Trial:
    """Draw weighted rows and transformations of them.

    A long translation vector rounds near ties away; odd weight factors round in float32.
    """
    case = draw(weighted_rows(*kinds, max_rows=max_rows, trusted=trusted))
    m, d = case.rows.shape
    vector = draw(integers((max(SIZES),), 9))[-d:] * draw(st.sampled_from((1, 2**8)))
    # One draw: an order hardly shrinks, and each further draw would cost many calls.
    seed = draw(st.integers(0, 63))
    order = np.random.default_rng(seed).permutation(m).tolist() if seed else range(m)[::-1]
    return Trial(
        case,
        tuple(order),
        torch.from_numpy(vector.astype(np.float64)),
        draw(st.sampled_from((2.0**-30, 0.5, 4.0, 2.0**30))),
        draw(st.sampled_from((3, 0.1, 2.0**-30, 2.0**30, 2**24 + 1))),
        draw(st.sampled_from((0.0, 1e30, torch.nan, torch.inf, -torch.inf))),
    )
