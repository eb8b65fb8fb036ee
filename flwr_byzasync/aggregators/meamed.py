"""Mean around the median (Xie, Koyejo and Gupta 2018, arXiv 1802.10116), in weighted form."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_byz_fraction
from flwr_byzasync.aggregators.bounds import trimmed_bound
from flwr_byzasync.aggregators.median import CoordinateWiseMedian
from flwr_byzasync.aggregators.numerics import paired_blocks
from flwr_byzasync.aggregators.rule import Law, RuleInfo, WeightedRule
from flwr_byzasync.aggregators.selection import mean_around


@dataclass(frozen=True)
class Meamed(WeightedRule):
    """Weighted mean of the values of each coordinate that lie nearest to its median.

    In each coordinate, values are taken in order of their distance from the weighted median
    until they hold ``(1 − λ) S`` of the weight; values at equal distance share the weight
    still missing in proportion to their weights. It is `CTMA` over w-CWMed in each coordinate.

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
    supremum. It covers any true share up to `byz_fraction`, and none beyond. The result
    lies in the rows' coordinate hull.
    No rule's constant is below λ/(1 − 2λ).

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

    INFO: ClassVar[RuleInfo] = RuleInfo(
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
        weights = weights.to(torch.float64)
        target_weight = (1.0 - self.byz_fraction) * weights.sum()
        blocks = paired_blocks(rows, median)
        return torch.cat([mean_around(x, weights, z, target_weight) for x, z in blocks])
