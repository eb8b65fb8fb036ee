"""Mean around the median (Xie, Koyejo and Gupta 2018, arXiv 1802.10116), in weighted form."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync.aggregators.ctma import TIE, trimmed_bound
from flwr_byzasync.aggregators.median import CoordinateWiseMedian
from flwr_byzasync.aggregators.numerics import EPS, paired_blocks
from flwr_byzasync.aggregators.rule import Law, Rule, WeightedRule
from flwr_byzasync.errors import check_byz_fraction


@dataclass(frozen=True)
class Meamed(WeightedRule):
    """Weighted mean of the values of each coordinate that lie nearest to its median.

    In each coordinate, values are taken in order of their distance from the weighted median
    until they hold ``(1 − λ) S`` of the weight; values equally far share what is missing in
    proportion to their weights. It is `CTMA` over w-CWMed in each coordinate on its own.

    Parameters
    ----------
    byz_fraction : float
        λ in [0, 1/2): the largest share of the weight that Byzantine nodes may hold.

    Raises
    ------
    ConfigError
        If `byz_fraction` is out of range.

    Guarantees
    ----------
    ``‖A − x̄_G‖² <= 4λ/((1 − λ)(1 − 2λ)) ρ²``, proved in docs/theory/meamed.md, sharp as a
    supremum. It covers any true share up to `byz_fraction`; beyond it there is none. The
    result lies in the rows' coordinate hull.
    No rule is below the floor, λ/(1 − 2λ).

    Cost
    ----
    A coordinate-wise median and one more sort of m values per coordinate, O(m log m d).

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[0.0], [1.0], [2.0], [100.0]])
    >>> Meamed(byz_fraction=0.25)(rows, torch.ones(4))
    tensor([1.])
    """

    byz_fraction: float

    RULE: ClassVar[Rule] = Rule(
        name="meamed",
        laws=frozenset(Law),
        bound=trimmed_bound,
        sources=("Xie, Koyejo, Gupta 2018, arXiv 1802.10116", "docs/theory/meamed.md"),
    )

    def __post_init__(self) -> None:
        check_byz_fraction("byz_fraction", self.byz_fraction)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded mean around the median."""
        median = CoordinateWiseMedian().aggregate(rows, weights).to(torch.float64)
        mass = weights.to(torch.float64)
        wanted = (1.0 - self.byz_fraction) * mass.sum()
        return torch.cat([mean_around(x, mass, z, wanted) for x, z in paired_blocks(rows, median)])


def mean_around(rows: Tensor, mass: Tensor, median: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean, in each column, of the values nearest to `median` that hold `wanted`."""
    used = (mass > 0).unsqueeze(1)
    offset = torch.where(used, rows - median, 0.0)
    # Values of weight zero must not be where the cut falls.
    distance, order = torch.where(used, offset.abs(), torch.inf).t().contiguous().sort(dim=1)
    weight = mass[order]
    # Slack, or rounding in the sum of all weights could leave the cut beyond the last value.
    reached = weight.cumsum(dim=1) >= wanted * (1.0 - TIE)
    cut = distance.gather(1, reached.to(torch.uint8).argmax(dim=1, keepdim=True))
    # Distances that differ by rounding, of the midpoint of two values above all, are equal.
    same = TIE * cut + 4.0 * EPS * median.abs().unsqueeze(1)
    near = distance < cut - same
    whole = torch.where(near, weight, 0.0)
    at_cut = torch.where(~near & (distance <= cut + same), weight, 0.0)
    missing = (wanted - whole.sum(dim=1, keepdim=True)).clamp(min=0.0)
    part = (missing / at_cut.sum(dim=1, keepdim=True)).clamp(max=1.0)
    kept = whole + at_cut * part
    moved = (kept * offset.t().gather(1, order)).sum(dim=1) / kept.sum(dim=1)
    return median + moved
