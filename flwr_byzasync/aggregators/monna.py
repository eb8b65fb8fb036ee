"""MoNNA: mean of the nearest neighbours of a trusted row (Farhadkhani et al. 2023, ICML)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_byz_fraction, check_integer
from flwr_byzasync.aggregators.median import CoordinateWiseMedian
from flwr_byzasync.aggregators.rule import Law, RuleInfo, WeightedRule
from flwr_byzasync.aggregators.selection import mean_nearest


def pivot_bound(lam: float, share: float) -> float:
    """Return the constant for sets G in which the pivot holds a given share of the weight.

    Parameters
    ----------
    lam : float
        λ in [0, 1/2).
    share : float
        The pivot's share of the weight of G, in (0, 1].

    Returns
    -------
    float
        ``4λ/(1 − λ) (1 + λ/((1 − λ) share))``.
    """
    p = lam / (1.0 - lam)
    return 4.0 * p * (1.0 + p / share)


@dataclass(frozen=True)
class MoNNA(WeightedRule):
    """Weighted mean of the rows nearest to a trusted row, the pivot.

    Rows are taken in order of ``‖x_i − x_pivot‖`` until they hold ``(1 − λ) S`` of the weight;
    rows at equal distance share the weight still missing in proportion to their weights. In the
    published rule every node is its own pivot. On a server the pivot must be a node that the
    operator knows to be honest: a Byzantine pivot controls the result alone.

    If the table has no row `pivot`, or it has weight zero, rows are ordered by their distance
    from the weighted coordinate-wise median instead, as in `CTMA` over w-CWMed: no other node is
    ever trusted in its place.

    Parameters
    ----------
    byz_fraction : float
        λ in [0, 1/2): the largest share of the weight that Byzantine nodes may hold.
    pivot : int, default 0
        Index of the trusted row, >= 0, in order of joining. Dropping a row shifts the
        later ones by one: do not drop rows with this rule, or let the trusted node join first.

    Raises
    ------
    ConfigError
        If `byz_fraction` or `pivot` is out of range.

    Guarantees
    ----------
    Only for sets G that contain the pivot, and the constant depends on its share q of their
    weight: ``‖A − x̄_G‖² <= 4λ/(1 − λ) (1 + λ/((1 − λ) q)) ρ²``, see `pivot_bound`. It is
    proved in docs/theory/monna.md, sharp as a supremum, and grows without limit as q -> 0: so
    there is no c_λ, and `bound` is None. Without the pivot, `CTMA`'s 4λ/((1 − λ)(1 − 2λ)).
    The order of the rows matters, and copies of rows before the pivot move it.

    Cost
    ----
    Two passes over the rows, O(m d), and one value read from the device: whether the pivot has
    weight.

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[1.0], [2.0], [3.0], [100.0]])
    >>> MoNNA(byz_fraction=0.25, pivot=1)(rows, torch.ones(4))
    tensor([2.])
    """

    byz_fraction: float
    pivot: int = 0

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="monna",
        laws=frozenset(Law) - {Law.PERMUTATION, Law.COPIES},
        bound=None,
        sources=("Farhadkhani et al. 2023, arXiv 2209.10931", "docs/theory/monna.md"),
    )

    def __post_init__(self) -> None:
        check_byz_fraction("byz_fraction", self.byz_fraction)
        fix = "pass the index of a node that you trust, for example pivot=0"
        check_integer("pivot", self.pivot, low=0, fix=fix)

    @property
    def trusted(self) -> tuple[int, ...]:
        """The pivot: nothing is proved if it is Byzantine."""
        return (self.pivot,)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded mean of the rows nearest to the pivot."""
        return mean_nearest(rows, weights, self._centre(rows, weights), 1.0 - self.byz_fraction)

    def _centre(self, rows: Tensor, weights: Tensor) -> Tensor:
        if self.pivot < len(rows) and bool(weights[self.pivot] > 0):
            return rows[self.pivot].to(torch.float64)
        return CoordinateWiseMedian().aggregate(rows, weights).to(torch.float64)
