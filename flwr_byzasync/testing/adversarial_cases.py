"""Hypothesis strategies for λ, and for weighted rows next to the thresholds of robust rules."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync.testing.cases import KINDS, MAX_ROWS, Weighted, integers, weighted_rows

USUAL_SHARES = tuple(Fraction(n, 20) for n in (0, 1, 2, 4, 5, 6, 8, 9))
FINE = 500
"""One unit of weight in `adversarial_rows` is one part in 2 · FINE · (denominator of λ)."""


class BoundCase(NamedTuple):
    """Weighted rows for the robustness inequality, and the share that liars may hold."""

    case: Weighted
    share: Fraction


@st.composite
def shares(
    draw: st.DrawFn, weights: Tensor | None = None, limit: Fraction = Fraction(9, 20)
) -> Fraction:
    """Draw λ in [0, `limit`]: a round number, the limit, or the exact share of some rows.

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


def _cells(share: Fraction, first: Fraction, offset: int, in_first: int) -> list[int]:
    """Return the honest weights at two points, then the liars' (none, all or half at the first)."""
    unit = 2 * FINE * share.denominator
    liars = int(share * unit)
    near = (0, liars, liars // 2)[in_first]
    honest = int(first * unit) + offset - near
    return [max(0, w) for w in (honest, unit - honest - liars, near, liars - near)]


def witnesses(share: Fraction) -> list[BoundCase]:
    """Return cases that refute constants too small for a median or for trimming.

    Two points with each threshold missed by one unit; and a liar slightly nearer on one side
    than honest rows on the other, so that it is kept and they are not.
    """
    found = []
    for first, offset, in_first in product(_thresholds(share), (1, -1), (0, 1, 2)):
        weights = torch.tensor(_cells(share, first, offset, in_first))
        rows = torch.tensor([[0.0], [1.0], [0.0], [1.0]], dtype=torch.float64)
        used = weights > 0
        found.append(BoundCase(Weighted(rows[used], weights[used]), share))
    unit, lam = 2 * FINE * share.denominator, float(share)
    rows = torch.tensor([[0.0], [2 * lam], [1.0], [-1.0 + 1e-6]], dtype=torch.float64)
    middle, liars = int((Fraction(1, 2) - share) * unit), int(share * unit)
    weights = torch.tensor([middle + 1, middle - 1, liars, liars])
    return [*found, BoundCase(Weighted(rows, weights), share)]


@st.composite
def adversarial_rows(
    draw: st.DrawFn, share: Fraction, max_rows: int = MAX_ROWS, trusted: Sequence[int] = ()
) -> Weighted:
    """Draw rows at two points, with weights at or next to a threshold of robust rules.

    Robust rules decide by thresholds: half of the weight, λ of it, 1 − λ, 2λ. The weight at one
    point is such a threshold, or one unit more or less. Liars hold exactly `share` at one of the
    points or at both. The worst cases of medians have this form.

    Parameters
    ----------
    share : Fraction
        λ in [0, 1/2).
    max_rows : int, default 7
        Largest m, at least 4.
    trusted : sequence of int
        Rows that must be honest and have positive weight.
    """
    first = draw(st.sampled_from(_thresholds(share)))
    offset, in_first = draw(st.sampled_from((1, 0, -1))), draw(st.sampled_from((0, 1, 2)))
    weights = _cells(share, first, offset, in_first)
    d, places = (
        draw(st.sampled_from((1, 1, 2, 3))),
        draw(integers((4, 3), 3)).astype(np.float64),
    )
    if draw(st.booleans()):  # only two distinct points
        places = places[[0, 1, 0, 1]]
    places[2:] *= draw(st.sampled_from((1.0, 1.0, 1.0 + 1e-7, 30.0, 1e6)))
    rows = list(places[:, -d:])
    apart = [draw(st.sampled_from((0.0, 0.0, 1e-3, 1.0))) for _ in range(3)]
    for i in range(draw(st.integers(0, max(0, min(3, max_rows - 4))))):
        # Split off half of a row's weight, slightly displaced.
        rows.append(rows[i] + apart[i])
        weights.append(weights[i] // 2)
        weights[i] -= weights[i] // 2
    for i in trusted:
        weights[i] = max(1, weights[i])
    return Weighted(torch.from_numpy(np.array(rows)), torch.tensor(weights))


@st.composite
def bound_cases(
    draw: st.DrawFn,
    limit: Fraction = Fraction(9, 20),
    max_rows: int = MAX_ROWS,
    trusted: Sequence[int] = (),
) -> BoundCase:
    """Draw weighted rows of every kind, and a share of at most `limit` for liars."""
    if draw(st.booleans()) and max_rows >= 4 and max(trusted, default=0) < 4:
        share = draw(shares(limit=limit))
        return BoundCase(draw(adversarial_rows(share, max_rows, trusted)), share)
    case = draw(weighted_rows(*KINDS, max_rows=max_rows, trusted=trusted))
    return BoundCase(case, draw(shares(case.weights, limit)))
