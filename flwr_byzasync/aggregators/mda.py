"""Weighted minimum-diameter averaging (Rousseeuw 1985; El Mhamdi et al. 2021, NeurIPS)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_byz_fraction, check_integer
from flwr_byzasync.aggregators.cliques import members, tightest_cliques
from flwr_byzasync.aggregators.numerics import combine, heaviest_row, pairwise_distances
from flwr_byzasync.aggregators.rule import Law, RuleInfo, WeightedRule
from flwr_byzasync.aggregators.selection import TIE, first_reaching

MOST_ROWS = 32
"""Largest legal `max_rows`: beyond it the search could take minutes."""


def diameter_bound(lam: float) -> float:
    """Return ``2λ/(1 − λ)``: ‖A − x̄_G‖ over the diameter of G is at most that."""
    return 2.0 * lam / (1.0 - lam)


def ball_diameter_bound(lam: float) -> float:
    """Return ``3λ/(1 − λ)``, the same with more than `max_rows` distinct rows."""
    return 3.0 * lam / (1.0 - lam)


@dataclass(frozen=True)
class MDA(WeightedRule):
    """Weighted mean of the rows of smallest diameter that hold ``(1 − λ) S`` of the weight.

    δ is the smallest number such that rows pairwise at most δ apart hold ``(1 − λ) S``. Every
    maximal set of that kind is averaged, whole rows only, and the means are averaged in
    proportion to the weights of the sets. At n equal weights without equal distances such a set
    has exactly ``n − f`` rows, ``f = ⌊λn⌋``, and is the published choice; if two of them share
    their longest distance the published rule takes either.

    With more than `max_rows` distinct rows the search would take too long. Then the rows in the
    smallest ball that is centred at a row and holds ``(1 − λ) S`` are averaged instead: their
    diameter is at most 2δ. Balls of equal radius are averaged by their centres' weights.

    Parameters
    ----------
    byz_fraction : float
        λ in [0, 1/2): the largest share of the weight that Byzantine nodes may hold.
    max_rows : int
        In [1, 32]: up to this many distinct rows the search is exact.

    Raises
    ------
    ConfigError
        If `byz_fraction` or `max_rows` is out of range.

    Guarantees
    ----------
    ``‖A − x̄_G‖ <= 2λ/(1 − λ)`` times the diameter of G, sharp as a supremum; ``3λ/(1 − λ)`` with
    the ball; both proved in docs/theory/mda.md. There is no constant for ρ: a light row of G can
    make the diameter arbitrarily large while hardly changing ρ.

    Cost
    ----
    All pairs of rows, O(m² d). The search runs on the host, one transfer of m² numbers: a few
    milliseconds for 17 rows, at worst about 2^(λ m) sets of rows of equal weight, 3^(m/3) of any.

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[0.0], [1.0], [2.0], [100.0]])
    >>> MDA(byz_fraction=0.25)(rows, torch.ones(4))
    tensor([1.])
    """

    byz_fraction: float
    max_rows: int = 24

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="mda",
        laws=frozenset(Law),
        bound=None,
        sources=("El Mhamdi et al. 2021, NeurIPS, arXiv 2008.00742", "docs/theory/mda.md"),
    )

    def __post_init__(self) -> None:
        check_byz_fraction("byz_fraction", self.byz_fraction)
        fix = "with more distinct rows than this a ball is averaged"
        check_integer("max_rows", self.max_rows, low=1, high=MOST_ROWS, fix=fix)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the mean of the sets of smallest diameter."""
        weights = weights.to(torch.float64)
        # If a row is not finite the result is NaN anyway, but the search must terminate.
        distance = pairwise_distances(rows, weights).nan_to_num(nan=torch.inf, posinf=torch.inf)
        # Equal rows count once, or a weight would not mean copies at `max_rows`.
        first = (distance == 0).to(torch.uint8).argmax(dim=1)
        distinct = ((distance == 0).any(dim=1)).logical_and(
            first == torch.arange(len(rows), device=rows.device)
        )
        share = 1.0 - self.byz_fraction
        if int(distinct.sum()) <= self.max_rows:
            kept = _in_cliques(distance, weights, first, distinct, share)
        else:
            kept = _in_balls(distance, weights, share)
        kept = kept / kept.sum()
        return combine(rows, kept, heaviest_row(rows, kept))


def _in_balls(distance: Tensor, weights: Tensor, share: float) -> Tensor:
    """Return the weights of the rows in the smallest balls that hold `share` around a row."""
    ordered, order = distance.sort(dim=1)
    radius = first_reaching(ordered, weights[order].cumsum(dim=1), share * weights.sum())[:, 0]
    radius = torch.where(weights > 0, radius, torch.inf)
    reach = radius.min() * (1.0 + TIE)
    balls = (distance[radius <= reach] <= reach).to(torch.float64)
    return (weights[radius <= reach] / (balls @ weights)) @ balls * weights


def _in_cliques(
    distance: Tensor, weights: Tensor, first: Tensor, distinct: Tensor, share: float
) -> Tensor:
    """Return the weights of the rows in the heavy sets of smallest diameter.

    Parameters
    ----------
    distance, weights : Tensor
        (m, m) and (m,) float64.
    first : Tensor
        (m,) int64, the first row that equals row i.
    distinct : Tensor
        (m,) bool, whether that is row i itself.
    share : float
        Share of the weight that a set must hold.

    Returns
    -------
    Tensor
        (m,) float64: each row's weight times the number of sets that contain it.
    """
    held = torch.zeros_like(weights).index_add(0, first, torch.where(weights > 0, weights, 0.0))
    chosen = distinct.nonzero()[:, 0]
    between, own = distance[chosen][:, chosen].tolist(), held[chosen].tolist()
    target_weight = share * float(weights.sum()) * (1.0 - TIE)
    counts = [0] * len(own)
    for clique in tightest_cliques(between, own, target_weight):
        for i in members(clique):
            counts[i] += 1
    times = torch.zeros_like(weights)
    times[chosen] = torch.tensor(counts, dtype=torch.float64, device=weights.device)
    return torch.where(weights > 0, weights * times[first], 0.0)
