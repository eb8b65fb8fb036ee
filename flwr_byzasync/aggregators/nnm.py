"""w-NNM: nearest-neighbour mixing (Allouah et al. 2023, AISTATS, arXiv 2302.01772)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_byz_fraction
from flwr_byzasync.aggregators.bounds import published_median_bound, sharp_bound
from flwr_byzasync.aggregators.numerics import (
    EPS,
    norms,
    paired_blocks,
    pairwise_distances,
)
from flwr_byzasync.aggregators.rule import (
    Aggregator,
    Law,
    MetaRule,
    RuleInfo,
    aggregate_float64,
)
from flwr_byzasync.aggregators.selection import keep_nearest


def mixing_bound(lam: float, base: float) -> float:
    """Return ``4 λ (1 + c) g/(1 − λ)`` over a base with constant c.

    ``g = 1 + 2√(λ(1 − 2λ))/(1 − λ)`` for λ <= 1/3, and 2 beyond.
    """
    spread = 2.0 * math.sqrt(lam * (1.0 - 2.0 * lam)) / (1.0 - lam) if 3.0 * lam < 1.0 else 1.0
    return 4.0 * lam * (1.0 + base) * (1.0 + spread) / (1.0 - lam)


def published_mixing_bound(lam: float, base: float) -> float:
    """Return ``8 λ (1 + c)/(1 − λ)``, the published constant over a base with constant c."""
    return 8.0 * lam * (1.0 + base) / (1.0 - lam)


@dataclass(frozen=True)
class NNM(MetaRule):
    """Replace every row by the mean of the rows nearest to it, then apply the base.

    ``y_i`` is the weighted mean of the (1 − λ) S of weight nearest to ``x_i``, itself included;
    the last row is taken in part, and rows at equal distance share it in proportion to their
    weights. The result is ``base(y, s)``. With equal weights and λ = f/n these are the
    n − f nearest rows, as published.

    Parameters
    ----------
    base : Aggregator
        The rule applied to the mixed rows: any rule, including third-party ones.
    byz_fraction : float
        λ in [0, 1/2): the largest share of the weight that Byzantine nodes may hold.

    Raises
    ------
    ConfigError
        If `base` cannot be called or `byz_fraction` is out of range.

    Guarantees
    ----------
    ``‖A − x̄_G‖² <= 4λ(1 + c) g/(1 − λ) ρ²`` over a base with constant c at λ, with
    ``g = 1 + 2√(λ(1 − 2λ))/(1 − λ)`` for λ <= 1/3 and 2 beyond, proved in docs/theory/nnm.md
    (published, for counts: 8λ(1 + c)/(1 − λ)). The bound covers any true share up to
    `byz_fraction`, and none beyond.
    No rule's constant is below λ/(1 − 2λ).

    Cost
    ----
    O(m² d) and an (m, d) copy in float64, then the base.

    Examples
    --------
    >>> import torch
    >>> from flwr_byzasync.aggregators import CoordinateWiseMedian
    >>> rows = torch.tensor([[0.0], [1.0], [2.0], [100.0]])
    >>> NNM(CoordinateWiseMedian(), byz_fraction=0.25)(rows, torch.ones(4))
    tensor([1.])
    """

    base: Aggregator
    byz_fraction: float

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="nnm",
        laws=frozenset(Law),
        bound=lambda lam: mixing_bound(lam, sharp_bound(lam)),
        sources=("Allouah et al. 2023, arXiv 2302.01772, section 3", "docs/theory/nnm.md"),
        published=lambda lam: published_mixing_bound(lam, published_median_bound(lam)),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_byz_fraction("byz_fraction", self.byz_fraction)

    def bound_over(self, lam: float, base: float) -> float:
        """Return the constant over a base with constant `base`."""
        return mixing_bound(lam, base)

    def published_bound_over(self, lam: float, base: float) -> float:
        """Return the published constant over a base with constant `base`."""
        return published_mixing_bound(lam, base)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the base's unrounded result on the mixed rows."""
        return aggregate_float64(self.base, mix(rows, weights, self.byz_fraction), weights)


def mix(rows: Tensor, weights: Tensor, byz_fraction: float) -> Tensor:
    """Return the mean of the (1 − λ) S of weight nearest to each row.

    Parameters
    ----------
    rows, weights : Tensor
        (m, d) and (m,).
    byz_fraction : float
        λ.

    Returns
    -------
    Tensor
        (m, d) float64; finite in rows of weight zero.
    """
    used = weights > 0
    distance = pairwise_distances(rows, weights)
    # A row that was rounded itself, for example by another mixing, is exact to its last digit.
    tolerance = 4 * EPS * norms(rows).unsqueeze(1)
    kept = keep_nearest(distance, weights, 1.0 - byz_fraction, tolerance)
    share = torch.where(used.unsqueeze(1), kept / kept.sum(dim=1, keepdim=True), 0.0)
    # Relative to the row with the nearest neighbours, so that a far row costs no digits.
    spread = torch.where(share > 0, share * distance, 0.0).sum(dim=1)
    middle = torch.where(used, spread, torch.inf).argmin().reshape(1)
    centre = rows.index_select(0, middle)[0].to(torch.float64)
    mixed = [
        c + share @ torch.where(used.unsqueeze(1), x - c, 0.0)
        for x, c in paired_blocks(rows, centre)
    ]
    return torch.cat(mixed, dim=1)
