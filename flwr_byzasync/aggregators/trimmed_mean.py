"""Coordinate-wise trimmed mean (Yin et al. 2018, ICML), in weighted form."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_byz_fraction
from flwr_byzasync.aggregators.bounds import floor_bound, published_trimmed_bound
from flwr_byzasync.aggregators.numerics import column_blocks
from flwr_byzasync.aggregators.rule import Law, RuleInfo, WeightedRule
from flwr_byzasync.aggregators.selection import TIE


@dataclass(frozen=True)
class TrimmedMean(WeightedRule):
    """Weighted mean of each coordinate without its lowest and highest values.

    In each coordinate, weight ``λ S`` is cut off at both ends, the row at the cut only in part,
    and the weighted mean of the remaining ``(1 − 2λ) S`` is the result. Equal weights and
    an integer ``λ m`` give the published rule.

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
    ``‖A − x̄_G‖² <= λ/(1 − 2λ) ρ²``, proved in docs/theory/trimmed_mean.md (published:
    ``6 λ/(1 − 2λ) (1 + λ/(1 − 2λ))``). No rule has a smaller constant. It covers any true
    share up to `byz_fraction`, and none beyond. The result lies in the rows' coordinate
    hull.

    Cost
    ----
    One sort of m values per coordinate, O(m log m d), in blocks of columns.

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[0.0], [1.0], [3.0], [100.0]])
    >>> TrimmedMean(byz_fraction=0.25)(rows, torch.ones(4))
    tensor([2.])
    """

    byz_fraction: float

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="trimmed_mean",
        laws=frozenset(Law),
        bound=floor_bound,
        sources=(
            "Yin, Chen, Ramchandran, Bartlett 2018, arXiv 1803.01498",
            "Allouah et al. 2023, arXiv 2302.01772: the published constant",
            "docs/theory/trimmed_mean.md",
        ),
        published=published_trimmed_bound,
    )

    def __post_init__(self) -> None:
        check_byz_fraction("byz_fraction", self.byz_fraction)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded trimmed mean."""
        weights = weights.to(torch.float64)
        return torch.cat([self._trimmed(x, weights) for x in column_blocks(rows)])

    def _trimmed(self, rows: Tensor, weights: Tensor) -> Tensor:
        # Sorting the contiguous transpose is faster than sorting down the columns.
        values, order = torch.sort(rows.t().contiguous(), dim=1)
        ends = weights[order].cumsum(dim=1)
        total = ends[:, -1:]
        # Slightly more than λS: rounding could leave 1e-16 of a row that may be at 1e90.
        cut = self.byz_fraction * (1.0 + TIE) * total
        starts = torch.nn.functional.pad(ends[:, :-1], (1, 0))
        kept = (torch.minimum(ends, total - cut) - torch.maximum(starts, cut)).clamp(min=0.0)
        # Relative to the middle value, so that rows far from the origin lose no digits.
        middle = (2.0 * ends < total).sum(dim=1, keepdim=True).clamp(max=len(rows) - 1)
        centre = values.gather(1, middle).to(torch.float64)
        # Values of weight zero may be arbitrary.
        offset = torch.where(kept > 0, values - centre, 0.0)
        return (centre + (kept * offset).sum(dim=1, keepdim=True) / kept.sum(1, True))[:, 0]
