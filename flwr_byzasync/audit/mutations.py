"""Mutations of the worst-case search: random steps from one case to a similar one.

Step sizes span six orders of magnitude. Some mutations place rows and weights next to the
discontinuities of rules: ties, equal distances, exact halves of the weight.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from flwr_byzasync.audit.case import Case, Counts, Floats


class Mutations:
    """Random changes of rows and weights; the total weight of G and of the rest is kept.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws.
    lam : Fraction
        λ.
    total : int
        S, the sum of the weights.
    """

    def __init__(self, rng: np.random.Generator, lam: Fraction, total: int) -> None:
        self.rng = rng
        shares = [Fraction(1, 2), lam, 1 - lam, 1 - 2 * lam]
        self.edges = [math.floor(share * total) for share in shares]
        self.all: list[Callable[[Case], None]] = [
            *(self.kick, self.kick, self.shift, self.shift, self.edge, self.edge),
            *(self.equal, self.equal, self.copy, self.stretch),
        ]

    def some(self, case: Case) -> tuple[Floats, Counts]:
        """Return rows and weights after one to three mutations."""
        draft = replace(case, rows=case.rows.copy(), weights=case.weights.copy())
        for _ in range(int(self.rng.integers(1, 4))):
            self.all[self.rng.integers(len(self.all))](draft)
        return draft.rows, draft.weights

    # Each mutation writes into the rows or weights of a draft.
    def kick(self, draft: Case) -> None:
        """Move a row, alone or with those that coincide with it, by a fraction of some distance."""
        rng, rows = self.rng, draft.rows
        (i, j, k), (m, d) = rng.integers(0, len(rows), 3), rows.shape
        size = float(abs(rows[j] - rows[k]).max() or abs(rows[j]).max() or 1.0)
        step = rng.standard_normal(d) * size * 10.0 ** rng.uniform(-6, 0.5)
        if d > 1 and rng.random() < 0.5:
            step[rng.integers(d)] = 0.0
        here = abs(rows - rows[i]).max(axis=1) <= 1e-5 * size
        rows[here if rng.random() < 0.5 else np.arange(m) == i] += step

    def stretch(self, draft: Case) -> None:
        """Scale the offsets of some rows from a row or from the origin."""
        rng, rows = self.rng, draft.rows
        which = rng.random(len(rows)) < 0.5
        centre = rows[rng.integers(len(rows))] * rng.integers(0, 2)
        factor = math.exp(rng.standard_normal() * 10.0 ** rng.uniform(-5, 0.5))
        rows[which] = centre + (rows[which] - centre) * factor

    def copy(self, draft: Case) -> None:
        """Copy a row onto another."""
        i, j = self.rng.integers(0, len(draft.rows), 2)
        draft.rows[i] = draft.rows[j]

    def equal(self, draft: Case) -> None:
        """Give a row the same distance from a centre as another, or slightly less or more."""
        rng, rows = self.rng, draft.rows
        i, j, k = rng.integers(0, len(rows), 3)
        centre = (rows[k].copy(), rows[k].copy(), draft.result, 0.0 * rows[k])[rng.integers(4)]
        nudge = float(rng.choice([-1, 0, 1])) * 10.0 ** rng.uniform(-9, -3)
        way = centre - rows[j] if rng.random() < 0.3 else rows[i] - centre
        length = math.sqrt(way @ way)
        if length > 0.0:
            radius = math.sqrt((rows[j] - centre) @ (rows[j] - centre))
            rows[i] = centre + way * (radius * (1.0 + nudge) / length)

    def shift(self, draft: Case) -> None:
        """Move a part of one row's weight, or all but a part, to another row of its side."""
        i, j = self.pair(draft)
        part = int(draft.weights[i] * 10.0 ** self.rng.uniform(-6, 0)) or 1
        _give(
            draft.weights, i, j, part if self.rng.random() < 0.7 else int(draft.weights[i]) - part
        )

    def edge(self, draft: Case) -> None:
        """Make the rows on one side of a point hold S/2, λS or (1 − λ)S, or one unit off."""
        rng, rows = self.rng, draft.rows
        i, j = self.pair(draft)
        order = rows[:, rng.integers(rows.shape[1])]
        if rng.random() < 0.5:
            order = ((rows - rows[rng.integers(len(rows))]) ** 2).sum(axis=1)
        place = order[rng.integers(len(rows))]
        inside = order < place if rng.random() < 0.3 else order <= place
        if inside[i] == inside[j]:
            return
        target_weight = self.edges[rng.integers(len(self.edges))] + int(rng.integers(-1, 2))
        excess = int(draft.weights[inside].sum()) - target_weight
        if bool(inside[i]) != (excess > 0):
            i, j = j, i
        _give(draft.weights, i, j, abs(excess))

    def pair(self, case: Case) -> tuple[int, int]:
        """Return two rows of the same side, possibly the same row."""
        i = int(self.rng.integers(len(case.honest)))
        return i, int(self.rng.choice(np.flatnonzero(case.honest == case.honest[i])))


def _give(weights: Counts, i: int, j: int, amount: int) -> None:
    """Move weight from row i to row j; every row keeps some."""
    amount = min(amount, int(weights[i]) - 1)
    weights[i] -= amount
    weights[j] += amount
