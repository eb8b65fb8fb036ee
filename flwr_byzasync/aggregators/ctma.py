"""w-CTMA: centred trimmed meta-aggregator (Dahan and Levy 2024, arXiv 2501.09621, algorithm 1)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.linalg import vector_norm

from flwr_byzasync.aggregators.incremental import Change, Incremental, TableView, incremental_of
from flwr_byzasync.aggregators.median import published_bound
from flwr_byzasync.aggregators.numerics import EPS, combine, squared_distances
from flwr_byzasync.aggregators.rule import (
    Aggregator,
    Law,
    Rule,
    RuleOver,
    WeightedRule,
    precise,
)
from flwr_byzasync.errors import check_byz_fraction

TIE = 1e-12
"""Rows whose distances differ by less than this factor, or by less than the rounding of the
centre, are equally far: float64 cannot tell them apart, and that rounding would decide."""


def meta_bound(lam: float, base: float) -> float:
    """Return ``4 λ (√(λ c) + √(1 − 2λ))²/(1 − λ)²``, the constant over any base with constant c.

    A base that states less than λ/(1 − 2λ), which no rule has, is taken to have that.
    """
    least = max(base, lam / (1.0 - 2.0 * lam))
    root = math.sqrt(lam * least) + math.sqrt(1.0 - 2.0 * lam)
    return 4.0 * lam * (root / (1.0 - lam)) ** 2


def trimmed_bound(lam: float) -> float:
    """Return ``4 λ/((1 − λ)(1 − 2λ))``, the constant around a median, for λ in [0, 1/2)."""
    return 4.0 * lam / ((1.0 - lam) * (1.0 - 2.0 * lam))


def published_meta_bound(lam: float, base: float) -> float:
    """Return ``60 λ (1 + c)``, the published constant over a base with constant c."""
    return 60.0 * lam * (1.0 + base)


@dataclass(frozen=True)
class CTMA(RuleOver):
    """Weighted mean of the rows nearest to a robust centre.

    ``x_0 = base(x, s)``; rows are taken in order of ``‖x_i − x_0‖`` until they hold
    ``(1 − λ) S`` of the weight, the last one with only the weight still missing; rows equally
    far share what is missing in proportion to their weights. The result is their weighted mean.

    Parameters
    ----------
    base : Aggregator
        The robust centre. Any rule, a third party's included.
    byz_fraction : float
        λ in [0, 1/2): the largest share of the weight that Byzantine nodes may hold.

    Raises
    ------
    ConfigError
        If `base` cannot be called or `byz_fraction` is out of range.

    Guarantees
    ----------
    ``‖A − x̄_G‖² <= 4λ/((1 − λ)(1 − 2λ)) ρ²`` over w-CWMed and w-GM, sharp as a supremum, and
    ``<= 4λ(√(λc) + √(1 − 2λ))²/(1 − λ)² ρ²`` over any base with constant c at λ, which cannot be
    improved knowing c alone; both proved in docs/theory/ctma.md (published: 60λ(1 + c)). It goes
    to 0 with λ, which no median's does; it is below the medians' own constant for λ < 1/5 only.
    The bound covers any true share up to `byz_fraction`; beyond it there is none.
    No rule is below the floor, λ/(1 − 2λ).

    Cost
    ----
    The base and two more passes over the rows, O(m d). Kept up to date where its base is.

    Examples
    --------
    >>> import torch
    >>> from flwr_byzasync.aggregators import CoordinateWiseMedian
    >>> rows = torch.tensor([[0.0], [1.0], [2.0], [100.0]])
    >>> CTMA(CoordinateWiseMedian(), byz_fraction=0.25)(rows, torch.ones(4))
    tensor([1.])
    """

    base: Aggregator
    byz_fraction: float

    RULE: ClassVar[Rule] = Rule(
        name="ctma",
        laws=frozenset(Law),
        bound=trimmed_bound,
        sources=("Dahan and Levy 2024, arXiv 2501.09621, section 3", "docs/theory/ctma.md"),
        published=lambda lam: published_meta_bound(lam, published_bound(lam)),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_byz_fraction("byz_fraction", self.byz_fraction)

    def over(self, lam: float, base: float) -> float:
        """Return the constant over a base with constant `base`."""
        around_median = isinstance(self.base, WeightedRule) and self.base.RULE.balanced
        return trimmed_bound(lam) if around_median else meta_bound(lam, base)

    def published_over(self, lam: float, base: float) -> float:
        """Return the published constant over a base with constant `base`."""
        return published_meta_bound(lam, base)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded trimmed mean."""
        return self.around(precise(self.base, rows, weights), rows, weights)

    def around(self, centre: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded mean of the rows nearest to a (d,) float64 centre."""
        distance = squared_distances(rows, centre).sqrt()
        mass = weights.to(torch.float64)
        wanted = (1.0 - self.byz_fraction) * mass.sum()
        kept = keep_nearest(distance, mass, wanted, 4 * EPS * vector_norm(centre))
        return combine(rows, kept / kept.sum(), centre)

    def incremental(self) -> "IncrementalCTMA | None":
        """How it is kept up to date, where its base is."""
        base = incremental_of(self.base)
        return None if base is None else IncrementalCTMA(self, base)


@dataclass(frozen=True)
class IncrementalCTMA:
    """CTMA around a centre that is kept up to date; its state is the base's."""

    rule: CTMA
    base: Incremental[Any]

    def start(self, view: TableView) -> object:
        """Return the base's state."""
        return self.base.start(view)

    def update(self, state: object, change: Change, view: TableView) -> object | None:
        """Return the base's state after a change."""
        return self.base.update(state, change, view)

    def direction(self, state: object, view: TableView) -> Tensor:
        """Return the trimmed mean in float64."""
        centre = self.base.direction(state, view).to(torch.float64)
        return self.rule.around(centre, view.rows, view.weights_beside_rows())


def keep_nearest(distance: Tensor, weights: Tensor, wanted: Tensor, blur: Tensor) -> Tensor:
    """Return the weights that remain of each row when the nearest hold `wanted` together.

    Parameters
    ----------
    distance, weights : Tensor
        (m,) float64.
    wanted : Tensor
        0-dim float64 in (0, S].
    blur : Tensor
        0-dim float64, how far off the distances may be by rounding of the point they start from.

    Returns
    -------
    Tensor
        (m,) float64 with sum `wanted`: rows nearer than the cut whole, rows at the cut in
        proportion, the others 0. No row of weight zero counts.
    """
    # Rows of weight zero must not be where the cut falls.
    order = torch.where(weights > 0, distance, torch.inf).argsort()
    # Slack, or rounding in the sum of all weights could leave the cut beyond the last row.
    reached = weights[order].cumsum(dim=0) >= wanted * (1.0 - TIE)
    cut = distance[order].gather(0, reached.to(torch.uint8).argmax(dim=0, keepdim=True))
    same = TIE * cut + blur
    near = distance < cut - same
    tied = ~near & (distance <= cut + same)
    whole = torch.where(near, weights, 0.0)
    at_cut = torch.where(tied, weights, 0.0)
    missing = (wanted - whole.sum()).clamp(min=0.0)
    return whole + at_cut * (missing / at_cut.sum()).clamp(max=1.0)
