"""Worst-case search: seeded, over rows, weights and honest sets.

It is derivative-free, because rules are discontinuous. Candidates climb by random mutations; many
short climbs are thinned out to a few long ones. Weights are integers and the honest rows hold
exactly (1 − λ)S, so a rule's bound applies to every candidate. If weights mean copies this loses
nothing: honest weight beyond (1 − λ)S is equivalent to a liar that sends the same vector.
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
"""Approximate total weight of a candidate: the resolution of exact halves and of light rows."""
ENDLESS = 1e12
"""The search stops at this ratio."""
DIMENSIONS = (1, 1, 2, 3)
"""d of a start is drawn from these; most rules already have their worst case in one dimension."""
AGREEING = 20
"""One in this many calls is spent on equal honest rows."""
THINNING = 4
"""One in this many candidates survives a stage, and gets this many times the mutations."""
FIRST_CLIMB = 60
"""Approximate number of mutations per candidate in the first stage."""


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
    least (1 − λ)S. The ratio found is a lower bound on the rule's true
    constant. `Case.ratio` is recomputed in rational arithmetic at the end.

    Parameters
    ----------
    rule : Aggregator
        Any rule. The rows in its `trusted` are always in G.
    lam : float or Fraction
        λ in [0, 1/2). A float is read as its shortest decimal: 0.1 is one tenth.
    rows : int, default 5
        Largest m, >= 2.
    evaluations : int, default 20000
        Budget: approximate number of calls of the rule, >= 100.
    seed : int, default 1
        Seed of all random draws. The same seed gives the same case on the same machine.

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
    # With equal honest rows the result must be that row: one call decides, no climb is needed.
    agreeing = [search.start(agreeing=True) for _ in range(evaluations // AGREEING)]
    starts = max(8, evaluations // (THINNING * FIRST_CLIMB))
    pool = _worst_first([*agreeing, *(search.start() for _ in range(starts))])[:starts]
    while search.used < evaluations and pool[0].ratio <= ENDLESS:
        stage = evaluations // THINNING if len(pool) > 2 else evaluations
        moves = -(-min(stage, evaluations - search.used) // len(pool))
        pool = _distinct([search.climb(case, moves) for case in pool])
        # An additional row adds a degree of freedom; halving a row leaves the case the same.
        pool = [search.halved(case) for case in pool[: max(2, len(pool) // THINNING)]]
    return search.proved(pool[0])


def _worst_first(pool: list[Case]) -> list[Case]:
    return sorted(pool, key=lambda case: -case.ratio)


def _distinct(pool: list[Case]) -> list[Case]:
    """Sort worst first, and keep one of those that reached the same optimum."""
    kept: list[Case] = []
    for case in _worst_first(pool):
        if not kept or case.ratio < kept[-1].ratio * (1.0 - 1e-3):
            kept.append(case)
    return kept


class _Search:
    """The state of one search: its random generator and the number of calls so far."""

    def __init__(self, rule: Aggregator, lam: Fraction, rows: int, seed: int) -> None:
        self.rule, self.lam, self.used = rule, lam, 0
        self.rng = np.random.default_rng(seed)
        self.trusted: tuple[int, ...] = tuple(getattr(rule, "trusted", ()))
        self.most = max(rows, max(self.trusted, default=0) + 2)
        # Even, with λS an integer; if λ has too many digits, liars get slightly less.
        unit = 2 * lam.denominator if lam.denominator <= TOTAL // 1000 else 2
        self.total = unit * -(-TOTAL // unit)
        self.liars = math.floor(lam * self.total)
        self.mutations = Mutations(self.rng, lam, self.total)

    def call(self, rows: Floats, weights: Counts, honest: Mask) -> Case:
        """Call the rule once."""
        self.used += 1
        return evaluate(self.rule, rows, weights, honest)

    def climb(self, case: Case, moves: int) -> Case:
        """Apply mutations, keeping those that do not lower the ratio, and return the last case."""
        for _ in range(moves):
            if case.ratio > ENDLESS:
                break
            changed = self.call(*self.mutations.some(case), case.honest)
            case = changed if changed.ratio >= case.ratio else case
        return case

    def proved(self, case: Case) -> Case:
        """Return the case with its exact ratio, after checking the weight of G in integers."""
        held = int(case.weights[case.honest].sum())
        if held < (1 - self.lam) * int(case.weights.sum()):
            raise AssertionError(f"G holds only {held} of {case.weights.sum()}")
        if not np.isfinite(case.result).all():
            return case
        ratio = exact_ratio(case.rows, case.weights, case.honest, case.result)
        return replace(case, ratio=ratio)

    def start(self, *, agreeing: bool = False) -> Case:
        """Return a random candidate: points on a line, clusters, a cloud, or equal honest rows."""
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
        """Return the case with one row split in two, if that is allowed and loses nothing."""
        i = int(self.rng.integers(len(case.rows)))
        half = int(case.weights[i]) // 2
        if len(case.rows) >= self.most or half == 0:
            return case
        weights = np.append(case.weights, half)
        weights[i] -= half
        rows, honest = np.vstack([case.rows, case.rows[i]]), np.append(case.honest, case.honest[i])
        split = self.call(rows, weights, honest)
        # For a rule whose weights do not mean copies, this changes the result.
        return split if split.ratio >= case.ratio * (1.0 - 1e-9) else case
