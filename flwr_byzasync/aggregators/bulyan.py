"""Weighted Bulyan: Krum selects, then the values nearest to the median (El Mhamdi et al. 2018)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_number
from flwr_byzasync.aggregators.krum_scores import krum_scores
from flwr_byzasync.aggregators.median import CoordinateWiseMedian
from flwr_byzasync.aggregators.numerics import paired_blocks
from flwr_byzasync.aggregators.rule import Law, RuleInfo, WeightedRule
from flwr_byzasync.aggregators.selection import keep_nearest, mean_around


def bulyan_bound(lam: float) -> float:
    """Return the smaller of the constants proved from the median and from Krum's selection.

    With ``t = min(3λ, (1 − λ)/2)`` and ``b = 1 − 4λ``, for λ in [0, 1/4): the first is
    ``(1 − λ)(4λ + t − t²/(1 − λ) + 8λ²/b)/b²``, the second
    ``min(1/b, 2/(1 − 2λ))(1 − 2λ − λ²)/(1 − 3λ)``.
    """
    kept, free = 1.0 - 4.0 * lam, min(3.0 * lam, (1.0 - lam) / 2.0)
    spread = 4.0 * lam + free - free**2 / (1.0 - lam) + 8.0 * lam**2 / kept
    by_median = (1.0 - lam) * spread / kept**2
    selected = (1.0 - 2.0 * lam - lam**2) / (1.0 - 3.0 * lam)
    return min(by_median, min(1.0 / kept, 2.0 / (1.0 - 2.0 * lam)) * selected)


@dataclass(frozen=True)
class Bulyan(WeightedRule):
    """Mean, in each coordinate, of the values nearest to the median of the rows Krum selects.

    The rows of smallest Krum scores are selected until they hold ``(1 − 2λ) S`` of the weight;
    in each coordinate their weighted median is taken and the mean of the ``(1 − 4λ) S`` of the
    selected weight nearest to it. The last row is taken only with the weight still missing, and
    tied rows share it in proportion to their weights.

    At n equal weights and f = λn the published rule also selects n − 2f rows and averages
    n − 4f values, but it selects by rerunning Krum without the rows already chosen. Here
    scores are computed once: with reruns, a weight s would differ from s copies.

    Parameters
    ----------
    byz_fraction : float
        λ in [0, 1/4): the largest share of the weight that Byzantine nodes may hold. Published
        as n >= 4f + 3; from 1/4 on liars may be half of what is selected.

    Raises
    ------
    ConfigError
        If `byz_fraction` is out of range.

    Guarantees
    ----------
    ``‖A − x̄_G‖² <= c ρ²`` with the c of `bulyan_bound`, proved in docs/theory/bulyan.md; it goes
    to 0 with λ. It covers any true share up to `byz_fraction`, and none beyond. Each coordinate
    lies among those of the selected rows, whatever the others contain.
    No rule's constant is below λ/(1 − 2λ).

    Cost
    ----
    All pairs of rows, O(m² d), and two sorts of m values per coordinate.

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [100.0]])
    >>> Bulyan(byz_fraction=1 / 7)(rows, torch.ones(7))
    tensor([2.5000])
    """

    byz_fraction: float

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="bulyan",
        laws=frozenset(Law),
        bound=bulyan_bound,
        sources=("El Mhamdi et al. 2018, ICML, arXiv 1802.07927", "docs/theory/bulyan.md"),
    )

    def __post_init__(self) -> None:
        fix = "pass a smaller share, or use for example multi_krum, which takes any below 1/2"
        check_number("byz_fraction", self.byz_fraction, low=0.0, high=0.25, closed="left", fix=fix)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded means around the medians of the selected rows."""
        lam = self.byz_fraction
        selected = keep_nearest(krum_scores(rows, weights, 1.0 - lam), weights, 1.0 - 2.0 * lam)
        target_weight = selected.sum() * (1.0 - 4.0 * lam) / (1.0 - 2.0 * lam)
        median = CoordinateWiseMedian().aggregate(rows, selected)
        blocks = paired_blocks(rows, median)
        return torch.cat([mean_around(x, selected, z, target_weight) for x, z in blocks])
