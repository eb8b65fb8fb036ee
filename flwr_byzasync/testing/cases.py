"""Hypothesis strategies: weighted rows as a liar would place them, and shares of liars."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

MAX_ROWS = 7
"""2^7 sets of rows may be honest; laws that fail, fail with fewer."""
SIZES = (1, 2, 3, 4, 9)
"""Coordinates; 9 are more than rows."""
USUAL_SHARES = tuple(Fraction(n, 20) for n in (0, 1, 2, 4, 5, 6, 8, 9))
FINE = 500
"""Weight of a hair in `adversarial_rows`: one part in 2 · FINE · (denominator of λ)."""

Placement = Callable[[int, int], st.SearchStrategy[np.ndarray]]


class Weighted(NamedTuple):
    """Rows (m, d) in float64 with integer weights (m,) of positive sum."""

    rows: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Trial:
    """Weighted rows, and what the laws do to them.

    Parameters
    ----------
    case : Weighted
        Rows and weights.
    order : tuple of int
        Another order of the rows.
    vector : Tensor
        (d,) integers in float64, to move the rows by.
    factor : float
        A power of two, to scale the rows by.
    weight_factor : float
        To scale the weights by; an int keeps them integers.
    filling : float
        What rows of weight zero hold.
    """

    case: Weighted
    order: tuple[int, ...]
    vector: Tensor
    factor: float
    weight_factor: float
    filling: float


class Attack(NamedTuple):
    """Weighted rows, and the share of the weight that liars among them may hold."""

    case: Weighted
    share: Fraction


# --- rows --------------------------------------------------------------------------------------
def _numbers(shape: tuple[int, ...], kind: str) -> st.SearchStrategy[np.ndarray]:
    """Integers of a fixed size: a row is one draw of bytes, ten times as fast as its numbers."""
    size = shape[-1] * np.dtype(kind).itemsize
    rows = st.tuples(*[st.binary(min_size=size, max_size=size)] * prod(shape[:-1]))
    return rows.map(
        lambda drawn: np.frombuffer(b"".join(drawn), dtype=kind).astype(np.int64).reshape(shape)
    )


def _below(shape: tuple[int, ...], end: int) -> st.SearchStrategy[np.ndarray]:
    """Integers in ``0 .. end − 1``."""
    return _numbers(shape, "u1").map(lambda drawn: drawn % end)


def _integers(shape: tuple[int, ...], largest: int) -> st.SearchStrategy[np.ndarray]:
    """Integers in ``−largest .. largest``: 0, 1, −1, 2, ... in the order of their shrinking."""
    signs = np.array((-1, 1))
    return _below(shape, 2 * largest + 1).map(lambda n: (n + 1) // 2 * signs[n % 2])


def _scattered(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    return _integers((m, d), 9)


def _ties(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    return _integers((m, d), 1)


def _collinear(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    parts = (_integers((d,), 9), _integers((m,), 3), _integers((d,), 2))
    return st.builds(lambda start, steps, v: start + np.outer(steps, v), *parts)


def _clusters(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    parts = (_integers((2, d), 9), _below((m,), 2))
    return st.builds(lambda pool, which, near: pool[which] + near, *parts, _integers((m, d), 1))


def _duplicates(m: int, d: int) -> st.SearchStrategy[np.ndarray]:
    parts = (_integers((3, d), 4), _below((m,), 3))
    return st.builds(lambda pool, which: pool[which], *parts)


PLACEMENTS: tuple[Placement, ...] = (_scattered, _ties, _collinear, _clusters, _duplicates)


@st.composite
def integer_rows(draw: st.DrawFn, m: int, d: int) -> np.ndarray:
    """Rows on which translation and scaling by powers of two are exact."""
    rows: np.ndarray = draw(draw(st.sampled_from(PLACEMENTS))(m, d)).astype(np.float64)
    return rows


@st.composite
def far_rows(draw: st.DrawFn, m: int, d: int) -> np.ndarray:
    """Integer rows, some of which are moved far away, or close together around a far point."""
    rows: np.ndarray = draw(integer_rows(m, d))
    scales = np.array((1.0, 1.0, 1.0, 1e-3, 1e3, 1e6, 1e20, 1e90))
    factors = scales[draw(_below((m, 1), len(scales)))]
    rows = rows * factors + draw(st.sampled_from((0.0, 0.0, 500.0)))
    return rows


@st.composite
def near_ties(draw: st.DrawFn, m: int, d: int) -> np.ndarray:
    """Integer rows, a hair off: around the origin, or so far away that float32 sees the hair."""
    rows: np.ndarray = draw(integer_rows(m, d))
    hair: np.ndarray = draw(_integers((m, d), 2))
    far, size = draw(st.sampled_from(((0.0, 1e-7), (0.0, 1e-3), (500.0, 1e-4))))
    if far:
        rows = 0.05 * draw(_below((m, 1), 2)) * rows
    return rows + far + size * hair


@st.composite
def float_rows(draw: st.DrawFn, m: int, d: int) -> np.ndarray:
    """Rows whose sums and differences round."""
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
    """Integer weights of m rows: zeros, equal ones, exact halves; the sum is positive."""
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
        Which placements to draw from; ``"integers"`` if none is given. ``"integers"``: small
        integers, scattered, tied, collinear, in two clusters, duplicated; translation and
        scaling by powers of two are exact on them. ``"far"``: some of them at up to 1e90.
        ``"near"``: near ties, also rows of norm 500 that differ by 1e-4. ``"floats"``: float32
        values, whose sums round.
    max_rows : int, default 7
        Largest m.
    sizes : sequence of int
        From which d is drawn.
    trusted : sequence of int
        Rows that must be there, with positive weight.

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
    # Two rows first: with one, hardly anything can go wrong.
    m = draw(st.sampled_from(sorted(range(least, most + 1), key=lambda m: (m == 1, m))))
    d = draw(st.sampled_from(sizes))
    kind = draw(st.sampled_from(kinds or ("integers",)))
    # Always a block of the same size, or a smaller m would draw anew instead of shrinking; and
    # its end, where shrinking leaves what it cannot make zero.
    rows, weights = draw(KINDS[kind](most, max(sizes)))[-m:, -d:], draw(counts(m, most))
    weights[list(trusted)] = np.maximum(weights[list(trusted)], 1)
    return Weighted(torch.from_numpy(rows.copy()), torch.from_numpy(weights))


@st.composite
def trials(
    draw: st.DrawFn, *kinds: str, max_rows: int = MAX_ROWS, trusted: Sequence[int] = ()
) -> Trial:
    """Draw weighted rows, and what to do to them.

    With a long vector, rounding blurs near ties; odd factors of weights round in float32.
    """
    case = draw(weighted_rows(*kinds, max_rows=max_rows, trusted=trusted))
    m, d = case.rows.shape
    vector = draw(_integers((max(SIZES),), 9))[-d:] * draw(st.sampled_from((1, 2**8)))
    # One draw: an order has little to shrink, and each draw that has costs many calls.
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


# --- with a share of liars ---------------------------------------------------------------------
@st.composite
def shares(
    draw: st.DrawFn, weights: Tensor | None = None, limit: Fraction = Fraction(9, 20)
) -> Fraction:
    """Draw λ in [0, `limit`]: a round number, the limit itself, or what some rows hold exactly.

    Parameters
    ----------
    weights : Tensor, optional
        (m,) integers; with them, λ may be the exact share of some of the rows.
    limit : Fraction, default 9/20
        The largest share.

    Examples
    --------
    >>> from hypothesis import given
    >>> @given(share=shares(torch.tensor([3, 1, 1]), limit=Fraction(2, 5)))
    ... def shares_are_small(share):
    ...     assert 0 <= share <= Fraction(2, 5)
    >>> shares_are_small()
    """
    usual = [share for share in USUAL_SHARES if share < limit]
    exact = []
    if weights is not None:
        total, held = int(weights.sum()), 0
        for weight in draw(st.permutations(weights.tolist())):
            if held + weight <= limit * total:
                held += weight
        exact = [Fraction(held, total)]
    return draw(st.sampled_from([limit, *exact, *usual]))


def _thresholds(share: Fraction) -> tuple[Fraction, ...]:
    return Fraction(1, 2), share, 1 - share, 2 * share


def _cells(share: Fraction, first: Fraction, hair: int, in_first: int) -> list[int]:
    """Weights of the honest in two places, then of the liars there: none, all or half first."""
    unit = 2 * FINE * share.denominator
    liars = int(share * unit)
    near = (0, liars, liars // 2)[in_first]
    honest = int(first * unit) + hair - near
    return [max(0, w) for w in (honest, unit - honest - liars, near, liars - near)]


def witnesses(share: Fraction) -> list[Attack]:
    """Return what constants that are too small for a median or for trimming are refuted by.

    Two points, and each threshold missed by a hair; and a liar on one side a little nearer than
    honest rows on the other, for which it is kept and they are not.
    """
    found = []
    for first, hair, in_first in product(_thresholds(share), (1, -1), (0, 1, 2)):
        weights = torch.tensor(_cells(share, first, hair, in_first))
        rows = torch.tensor([[0.0], [1.0], [0.0], [1.0]], dtype=torch.float64)
        used = weights > 0
        found.append(Attack(Weighted(rows[used], weights[used]), share))
    unit, lam = 2 * FINE * share.denominator, float(share)
    rows = torch.tensor([[0.0], [2 * lam], [1.0], [-1.0 + 1e-6]], dtype=torch.float64)
    middle, liars = int((Fraction(1, 2) - share) * unit), int(share * unit)
    weights = torch.tensor([middle + 1, middle - 1, liars, liars])
    return [*found, Attack(Weighted(rows, weights), share)]


@st.composite
def adversarial_rows(
    draw: st.DrawFn, share: Fraction, max_rows: int = MAX_ROWS, trusted: Sequence[int] = ()
) -> Weighted:
    """Draw rows in two places, weighted so that a cut falls a hair beside where it should.

    Robust rules decide by thresholds: half of the weight, λ of it, 1 − λ, 2λ. Here the weight
    in one place is such a threshold, or a hair more or less, and a part of it, or of the other
    place, is liars who hold `share` exactly. Constants of medians are approached like this.

    Parameters
    ----------
    share : Fraction
        λ in [0, 1/2).
    max_rows : int, default 7
        Largest m, at least 4.
    trusted : sequence of int
        Rows that are honest and have positive weight: these come first.
    """
    first = draw(st.sampled_from(_thresholds(share)))
    hair, in_first = draw(st.sampled_from((1, 0, -1))), draw(st.sampled_from((0, 1, 2)))
    weights = _cells(share, first, hair, in_first)
    d, places = draw(st.sampled_from((1, 1, 2, 3))), draw(_integers((4, 3), 3)).astype(np.float64)
    if draw(st.booleans()):  # the two places alone
        places = places[[0, 1, 0, 1]]
    places[2:] *= draw(st.sampled_from((1.0, 1.0, 1.0 + 1e-7, 30.0, 1e6)))
    rows = list(places[:, -d:])
    apart = [draw(st.sampled_from((0.0, 0.0, 1e-3, 1.0))) for _ in range(3)]
    for i in range(draw(st.integers(0, max(0, min(3, max_rows - 4))))):
        # Half of a row's weight, a little aside.
        rows.append(rows[i] + apart[i])
        weights.append(weights[i] // 2)
        weights[i] -= weights[i] // 2
    for i in trusted:
        weights[i] = max(1, weights[i])
    return Weighted(torch.from_numpy(np.array(rows)), torch.tensor(weights))


@st.composite
def attacks(
    draw: st.DrawFn,
    limit: Fraction = Fraction(9, 20),
    max_rows: int = MAX_ROWS,
    trusted: Sequence[int] = (),
) -> Attack:
    """Draw weighted rows of every kind, and a share of liars of at most `limit`."""
    if draw(st.booleans()) and max_rows >= 4 and max(trusted, default=0) < 4:
        share = draw(shares(limit=limit))
        return Attack(draw(adversarial_rows(share, max_rows, trusted)), share)
    case = draw(weighted_rows(*KINDS, max_rows=max_rows, trusted=trusted))
    return Attack(case, draw(shares(case.weights, limit)))
