"""Worst cases: a seeded search for the rows, weights and honest set that hurt a rule most.

Derivative-free, because rules jump: at ties, at exact halves of the weight, where another row is
selected. Candidates climb by random moves whose sizes are drawn over six orders of magnitude, and
by moves that place rows and weights just beside such jumps. Many short climbs are thinned out to
a few long ones. Weights are integers and the honest rows hold (1 − λ)S to the unit, so every
candidate is one for which a rule's bound is claimed.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from flwr_byzasync.aggregators.rule import Aggregator, precise
from flwr_byzasync.errors import check_byz_fraction, check_integer

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

TOTAL = 1_000_000
"""About the total weight of a candidate: suprema at exact halves are reached within 1e-6."""
ROUNDING = 1e-12
"""Distances up to this factor of the largest coordinate count as rounding of the rule."""
ENDLESS = 1e12
"""A ratio beyond which nobody needs a worse one: the search ends."""
DIMENSIONS = (1, 1, 2, 3)
"""d of a start is drawn from these: on a line most rules have their worst case already."""
THINNING = 4
"""One in so many candidates of a stage goes on to the next, with so many times the moves."""
FIRST_CLIMB = 60
"""Moves of a candidate in the first stage, about."""


@dataclass(frozen=True)
class Case:
    """Rows and weights, the rows that count as honest, and how far a rule is off.

    Parameters
    ----------
    rows : ndarray
        (m, d) float64.
    weights : ndarray
        (m,) positive int64.
    honest : ndarray
        (m,) bool: the set G, which holds at least (1 − λ)S of the weight.
    result : ndarray
        (d,) float64, what the rule returned.
    ratio : float
        ``‖result − x̄_G‖²/ρ²``; inf where ρ = 0 and the result is elsewhere, or not finite.
    """

    rows: Floats
    weights: Counts
    honest: Mask
    result: Floats
    ratio: float


def worst_case(
    rule: Aggregator,
    lam: float | Fraction,
    *,
    rows: int = 5,
    evaluations: int = 20_000,
    seed: int = 1,
) -> Case:
    """Return the worst case of a rule that the search finds.

    ``max ‖A(x, s) − x̄_G‖²/ρ²`` over rows of d <= 3 coordinates, weights and sets G of weight at
    least (1 − λ)S. What it returns is a lower bound of the rule's true constant: the rule does
    not have a smaller one. `Case.ratio` is recomputed in rational arithmetic at the end.

    Parameters
    ----------
    rule : Aggregator
        Any rule. Rows that it calls `trusted` are always in G.
    lam : float or Fraction
        λ in [0, 1/2). A float is read as its shortest decimal: 0.1 is one tenth.
    rows : int, default 5
        Largest m that is tried, >= 2.
    evaluations : int, default 20000
        Calls of the rule, about: the budget, >= 100.
    seed : int, default 1
        Of all random draws. The same seed gives the same case on the same machine.

    Returns
    -------
    Case
        The worst one.

    Raises
    ------
    ConfigError
        If an argument is out of range.

    Examples
    --------
    >>> from flwr_byzasync.aggregators import CoordinateWiseMedian
    >>> worst_case(CoordinateWiseMedian(), 0.25, evaluations=2000).ratio > 0.98 * 2
    True
    """
    check_byz_fraction("lam", float(lam))
    check_integer("rows", rows, low=2, fix="pass for example rows=5")
    check_integer("evaluations", evaluations, low=100, fix="pass for example evaluations=20000")
    check_integer("seed", seed, low=0, fix="pass for example seed=1")
    search = _Search(rule, lam if isinstance(lam, Fraction) else Fraction(str(lam)), rows, seed)
    starts = max(8, evaluations // (THINNING * FIRST_CLIMB))
    pool = _worst_first([search.start() for _ in range(starts)])
    while search.used < evaluations and pool[0].ratio <= ENDLESS:
        stage = evaluations // THINNING if len(pool) > 2 else evaluations
        moves = -(-min(stage, evaluations - search.used) // len(pool))
        pool = _distinct([search.climb(case, moves) for case in pool])
        # One row more is one more way on: halves of a row are the same case.
        pool = [search.halved(case) for case in pool[: max(2, len(pool) // THINNING)]]
    return search.proved(pool[0])


def fast_ratio(rows: Floats, weights: Counts, honest: Mask, result: Floats) -> float:
    """Return ``‖result − x̄_G‖²/ρ²`` in float64, less what rounding of the rule may be."""
    share = weights * honest / (weights @ honest)
    mean = share @ rows
    offset, away = rows - mean, result - mean
    distance = math.sqrt(away @ away) - ROUNDING * float(abs(rows).max())
    spread = float(share @ (offset * offset).sum(axis=1))
    return _quotient(distance, spread)


def exact_ratio(rows: Floats, weights: Counts, honest: Mask, result: Floats) -> float:
    """Return the same from rational arithmetic, for a finite result."""
    x = [[Fraction(v) for v in row] for row in rows.tolist()]
    inside = [(int(w), row) for w, row, h in zip(weights, x, honest, strict=True) if h]
    total = sum(w for w, _ in inside)
    mean = [sum((w * row[k] for w, row in inside), Fraction()) / total for k in range(len(x[0]))]
    offsets = [(w, _square(row, mean)) for w, row in inside]
    spread = sum((w * square for w, square in offsets), Fraction()) / total
    away = _square([Fraction(v) for v in result.tolist()], mean)
    distance = math.sqrt(away) - ROUNDING * float(abs(rows).max())
    return _quotient(distance, float(spread))


def _square(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum(((p - q) ** 2 for p, q in zip(a, b, strict=True)), Fraction())


def _quotient(distance: float, spread: float) -> float:
    if distance <= 0.0:
        return 0.0
    return distance * distance / spread if spread > 0.0 and distance < math.inf else math.inf


def _worst_first(pool: list[Case]) -> list[Case]:
    return sorted(pool, key=lambda case: -case.ratio)


def _distinct(pool: list[Case]) -> list[Case]:
    """Worst first, one of those that have climbed the same hill."""
    kept: list[Case] = []
    for case in _worst_first(pool):
        if not kept or case.ratio < kept[-1].ratio * (1.0 - 1e-3):
            kept.append(case)
    return kept


class _Search:
    """The moves of one search, and the number of calls so far."""

    def __init__(self, rule: Aggregator, lam: Fraction, rows: int, seed: int) -> None:
        self.rule, self.lam, self.used = rule, lam, 0
        self.rng = np.random.default_rng(seed)
        self.trusted: tuple[int, ...] = tuple(getattr(rule, "trusted", ()))
        self.most = max(rows, max(self.trusted, default=0) + 2)
        # Even, and λS an integer, unless λ has too many digits: then liars get a little less.
        unit = 2 * lam.denominator if lam.denominator <= TOTAL // 10 else 2
        self.total = unit * -(-TOTAL // unit)
        self.liars = math.floor(lam * self.total)
        shares = [Fraction(1, 2), lam, 1 - lam, 1 - 2 * lam]
        self.edges = [math.floor(share * self.total) for share in shares]
        self.moves = [self.kick, self.kick, self.shift, self.shift, self.edge, self.edge]
        self.moves += [self.equal, self.equal, self.copy, self.stretch]

    def call(self, rows: Floats, weights: Counts, honest: Mask) -> Case:
        self.used += 1
        result = precise(self.rule, torch.from_numpy(rows), torch.from_numpy(weights))
        values: Floats = result.detach().to(torch.float64).numpy()
        bad = not np.isfinite(values).all()
        ratio = math.inf if bad else fast_ratio(rows, weights, honest, values)
        return Case(rows, weights, honest, values, ratio)

    def proved(self, case: Case) -> Case:
        """Return the case with its exact ratio, G's weight checked in integers."""
        held = int(case.weights[case.honest].sum())
        if held < (1 - self.lam) * int(case.weights.sum()):
            raise AssertionError(f"G holds {held} of {case.weights.sum()}: a fault of the search")
        if not np.isfinite(case.result).all():
            return case
        ratio = exact_ratio(case.rows, case.weights, case.honest, case.result)
        return Case(case.rows, case.weights, case.honest, case.result, ratio)

    # --- starts ---------------------------------------------------------------------------------
    def start(self) -> Case:
        """Return a random candidate: rows that agree, few places on a line, clusters, a cloud."""
        rng = self.rng
        m = int(rng.integers(max(2, max(self.trusted, default=0) + 2), self.most + 1))
        d = int(rng.choice(DIMENSIONS))
        free = [i for i in range(m) if i not in self.trusted]
        liars = min(int(rng.integers(1, m // 2 + 1)), len(free)) if self.liars else 0
        honest = np.ones(m, dtype=np.bool_)
        honest[rng.permutation(free)[:liars]] = False
        rows = rng.standard_normal((m, d))
        style = rng.integers(4)
        if style == 0:
            rows[honest] = rows[0] * rng.integers(0, 2)
            rows[~honest] *= 10.0 ** rng.uniform(-1, 3, (liars, 1))
        elif style == 1:
            a = 10.0 ** rng.uniform(-1.5, 0)
            places = np.array([0, 1, -1, a, -a, 2 * a, 1 - a, a - 1])
            places += rng.choice([0, -1e-6, 1e-6], len(places))
            rows = rng.choice(places, (m, 1)) * np.eye(1, d)
        elif style == 2:
            rows = rows[rng.integers(0, rng.integers(2, m + 1), m)]
        else:
            rows *= 10.0 ** rng.uniform(-1, 1, (m, 1))
        weights = np.empty(m, dtype=np.int64)
        weights[honest] = self.split(self.total - self.liars, m - liars)
        weights[~honest] = self.split(self.liars, liars)
        return self.call(rows, weights, honest)

    def split(self, total: int, parts: int) -> Counts:
        """Return `parts` positive integers with sum `total`."""
        ends = np.cumsum(self.rng.dirichlet(np.ones(parts))) if parts else np.empty(0)
        cuts = np.floor(ends * (total - parts)).astype(np.int64)
        cuts[-1:] = total - parts
        return np.diff(cuts, prepend=0) + 1

    def halved(self, case: Case) -> Case:
        """Return the same case with one row as two, where another row is allowed."""
        i = int(self.rng.integers(len(case.rows)))
        half = int(case.weights[i]) // 2
        if len(case.rows) >= self.most or half == 0:
            return case
        weights = np.append(case.weights, half)
        weights[i] -= half
        rows, honest = np.vstack([case.rows, case.rows[i]]), np.append(case.honest, case.honest[i])
        return Case(rows, weights, honest, case.result, case.ratio)

    # --- moves ----------------------------------------------------------------------------------
    def climb(self, case: Case, moves: int) -> Case:
        """Return the end of so many moves, of which those that lose nothing are kept."""
        for _ in range(moves):
            if case.ratio > ENDLESS:
                break
            rows, weights = case.rows.copy(), case.weights.copy()
            for _ in range(int(self.rng.integers(1, 4))):
                self.moves[self.rng.integers(len(self.moves))](rows, weights, case)
            changed = self.call(rows, weights, case.honest)
            case = changed if changed.ratio >= case.ratio else case
        return case

    def kick(self, rows: Floats, weights: Counts, case: Case) -> None:  # noqa: ARG002
        """Move a row, alone or with those at its place, by a part of a distance in the case."""
        rng = self.rng
        (i, j, k), (m, d) = rng.integers(0, len(rows), 3), rows.shape
        size = float(abs(rows[j] - rows[k]).max() or abs(rows[j]).max() or 1.0)
        step = rng.standard_normal(d) * size * 10.0 ** rng.uniform(-6, 0.5)
        if d > 1 and rng.random() < 0.5:
            step[rng.integers(d)] = 0.0
        here = abs(rows - rows[i]).max(axis=1) <= 1e-5 * size
        rows[here if rng.random() < 0.5 else np.arange(m) == i] += step

    def stretch(self, rows: Floats, weights: Counts, case: Case) -> None:  # noqa: ARG002
        """Scale the offsets of some rows from a row or from the origin."""
        rng = self.rng
        which = rng.random(len(rows)) < 0.5
        centre = rows[rng.integers(len(rows))] * rng.integers(0, 2)
        factor = math.exp(rng.standard_normal() * 10.0 ** rng.uniform(-5, 0.5))
        rows[which] = centre + (rows[which] - centre) * factor

    def copy(self, rows: Floats, weights: Counts, case: Case) -> None:  # noqa: ARG002
        """Put a row where another is."""
        i, j = self.rng.integers(0, len(rows), 2)
        rows[i] = rows[j]

    def equal(self, rows: Floats, weights: Counts, case: Case) -> None:  # noqa: ARG002
        """Put a row as far from a centre as another is, or a trifle nearer or farther."""
        rng = self.rng
        i, j, k = rng.integers(0, len(rows), 3)
        centre = (rows[k].copy(), rows[k].copy(), case.result, 0.0 * rows[k])[rng.integers(4)]
        trifle = float(rng.choice([-1, 0, 1])) * 10.0 ** rng.uniform(-9, -3)
        way = centre - rows[j] if rng.random() < 0.3 else rows[i] - centre
        length = math.sqrt(way @ way)
        if length > 0.0:
            radius = math.sqrt((rows[j] - centre) @ (rows[j] - centre))
            rows[i] = centre + way * (radius * (1.0 + trifle) / length)

    def shift(self, rows: Floats, weights: Counts, case: Case) -> None:  # noqa: ARG002
        """Give a part of one row's weight to another on its side."""
        i, j = self.pair(case)
        _give(weights, i, j, int(weights[i] * 10.0 ** self.rng.uniform(-5, 0)) or 1)

    def edge(self, rows: Floats, weights: Counts, case: Case) -> None:
        """Let the rows on one side of a place hold S/2, λS or (1 − λ)S, to the unit."""
        rng = self.rng
        i, j = self.pair(case)
        order = rows[:, rng.integers(rows.shape[1])]
        if rng.random() < 0.5:
            order = ((rows - rows[rng.integers(len(rows))]) ** 2).sum(axis=1)
        place = order[rng.integers(len(rows))]
        inside = order < place if rng.random() < 0.3 else order <= place
        if inside[i] == inside[j]:
            return
        wanted = self.edges[rng.integers(len(self.edges))] + int(rng.integers(-1, 2))
        excess = int(weights[inside].sum()) - wanted
        if bool(inside[i]) != (excess > 0):
            i, j = j, i
        _give(weights, i, j, abs(excess))

    def pair(self, case: Case) -> tuple[int, int]:
        """Return two rows that are both honest or both not, perhaps the same."""
        i = int(self.rng.integers(len(case.honest)))
        return i, int(self.rng.choice(np.flatnonzero(case.honest == case.honest[i])))


def _give(weights: Counts, i: int, j: int, amount: int) -> None:
    """Move weight from row i to row j; every row keeps some."""
    amount = min(amount, int(weights[i]) - 1)
    weights[i] -= amount
    weights[j] += amount
