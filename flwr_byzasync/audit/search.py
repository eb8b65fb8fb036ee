"""Worst cases: a seeded search for the rows, weights and honest set that hurt a rule most.

Derivative-free, because rules jump. Candidates climb by random moves; many short climbs are
thinned out to a few long ones. Weights are integers and the honest rows hold (1 − λ)S to the
unit, so every candidate is one for which a rule's bound is claimed. Where weights mean copies
that is no loss: honest weight beyond (1 − λ)S may as well be a liar that sends the same.
"""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np

from flwr_byzasync._checks import check_byz_fraction, check_integer
from flwr_byzasync.aggregators.rule import Aggregator
from flwr_byzasync.audit.case import Case, Counts, Floats, Mask, evaluate, exact_ratio
from flwr_byzasync.audit.mutations import Mutations

TOTAL = 1_000_000_000
"""About the total weight of a candidate: it comes as near to exact halves, and rows may weigh as
little, as one part in so many."""
ENDLESS = 1e12
"""A ratio beyond which nobody needs a worse one: the search ends."""
DIMENSIONS = (1, 1, 2, 3)
"""d of a start is drawn from these: on a line most rules have their worst case already."""
AGREEING = 20
"""One in so many calls is spent on honest rows that are all equal."""
THINNING = 4
"""One in so many candidates of a stage goes on to the next, with so many times the moves."""
FIRST_CLIMB = 60
"""Moves of a candidate in the first stage, about."""


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
    # Honest rows that agree must be what comes out: a call tells, no climb is needed.
    agreeing = [search.start(agreeing=True) for _ in range(evaluations // AGREEING)]
    starts = max(8, evaluations // (THINNING * FIRST_CLIMB))
    pool = _worst_first([*agreeing, *(search.start() for _ in range(starts))])[:starts]
    while search.used < evaluations and pool[0].ratio <= ENDLESS:
        stage = evaluations // THINNING if len(pool) > 2 else evaluations
        moves = -(-min(stage, evaluations - search.used) // len(pool))
        pool = _distinct([search.climb(case, moves) for case in pool])
        # One row more is one more way on: halves of a row are the same case.
        pool = [search.halved(case) for case in pool[: max(2, len(pool) // THINNING)]]
    return search.proved(pool[0])


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
        unit = 2 * lam.denominator if lam.denominator <= TOTAL // 1000 else 2
        self.total = unit * -(-TOTAL // unit)
        self.liars = math.floor(lam * self.total)
        self.moves = Mutations(self.rng, lam, self.total)

    def call(self, rows: Floats, weights: Counts, honest: Mask) -> Case:
        """Call the rule once."""
        self.used += 1
        return evaluate(self.rule, rows, weights, honest)

    def climb(self, case: Case, moves: int) -> Case:
        """Return the end of so many moves, of which those that lose nothing are kept."""
        for _ in range(moves):
            if case.ratio > ENDLESS:
                break
            changed = self.call(*self.moves.some(case), case.honest)
            case = changed if changed.ratio >= case.ratio else case
        return case

    def proved(self, case: Case) -> Case:
        """Return the case with its exact ratio, G's weight checked in integers."""
        held = int(case.weights[case.honest].sum())
        if held < (1 - self.lam) * int(case.weights.sum()):
            raise AssertionError(f"G holds only {held} of {case.weights.sum()}")
        if not np.isfinite(case.result).all():
            return case
        ratio = exact_ratio(case.rows, case.weights, case.honest, case.result)
        return replace(case, ratio=ratio)

    def start(self, *, agreeing: bool = False) -> Case:
        """Return a random candidate: places on a line, clusters, a cloud, or rows that agree."""
        rng = self.rng
        m = int(rng.integers(max(2, max(self.trusted, default=0) + 2), self.most + 1))
        d = int(rng.choice(DIMENSIONS))
        free = [i for i in range(m) if i not in self.trusted]
        liars = min(int(rng.integers(1, m // 2 + 1)), len(free)) if self.liars else 0
        honest = np.ones(m, dtype=np.bool_)
        honest[rng.permutation(free)[:liars]] = False
        rows = rng.standard_normal((m, d))
        style = 0 if agreeing else rng.integers(1, 4)
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
        """Return the case with one row as two, where another row is allowed and loses nothing."""
        i = int(self.rng.integers(len(case.rows)))
        half = int(case.weights[i]) // 2
        if len(case.rows) >= self.most or half == 0:
            return case
        weights = np.append(case.weights, half)
        weights[i] -= half
        rows, honest = np.vstack([case.rows, case.rows[i]]), np.append(case.honest, case.honest[i])
        split = self.call(rows, weights, honest)
        # Not the same to a rule for which weights are no copies.
        return split if split.ratio >= case.ratio * (1.0 - 1e-9) else case
