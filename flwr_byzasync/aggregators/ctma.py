"""w-CTMA: centred trimmed meta-aggregator (Dahan and Levy 2024, arXiv 2501.09621, algorithm 1)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_byz_fraction
from flwr_byzasync.aggregators.bounds import (
    meta_bound,
    published_median_bound,
    published_meta_bound,
    trimmed_bound,
)
from flwr_byzasync.aggregators.incremental import Change, Incremental, TableView, incremental_of
from flwr_byzasync.aggregators.rule import (
    Aggregator,
    Law,
    MetaRule,
    RuleInfo,
    WeightedRule,
    aggregate_float64,
)
from flwr_byzasync.aggregators.selection import mean_nearest


@dataclass(frozen=True)
class CTMA(MetaRule):
    """Weighted mean of the rows nearest to a robust centre.

    ``x_0 = base(x, s)``; rows are taken in order of ``‖x_i − x_0‖`` until they hold
    ``(1 − λ) S`` of the weight, the last one only with the weight still missing; rows at equal
    distance share that weight in proportion to their weights. The result is their weighted mean.

    Parameters
    ----------
    base : Aggregator
        The robust centre: any rule, including third-party ones.
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
    improved from c alone; both proved in docs/theory/ctma.md (published: 60λ(1 + c)). It goes
    to 0 with λ, unlike the medians'; it is below the medians' own constant only for λ < 1/5.
    The bound covers any true share up to `byz_fraction`, and none beyond.
    No rule's constant is below λ/(1 − 2λ).

    Cost
    ----
    The base and two more passes over the rows, O(m d). Incremental if the base is.

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

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="ctma",
        laws=frozenset(Law),
        bound=trimmed_bound,
        sources=("Dahan and Levy 2024, arXiv 2501.09621, section 3", "docs/theory/ctma.md"),
        published=lambda lam: published_meta_bound(lam, published_median_bound(lam)),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_byz_fraction("byz_fraction", self.byz_fraction)

    def bound_over(self, lam: float, base: float) -> float:
        """Return the constant over a base with constant `base`."""
        around_median = isinstance(self.base, WeightedRule) and self.base.INFO.balanced
        return trimmed_bound(lam) if around_median else meta_bound(lam, base)

    def published_bound_over(self, lam: float, base: float) -> float:
        """Return the published constant over a base with constant `base`."""
        return published_meta_bound(lam, base)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded trimmed mean."""
        return self.around(aggregate_float64(self.base, rows, weights), rows, weights)

    def around(self, centre: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded mean of the rows nearest to a (d,) float64 centre."""
        return mean_nearest(rows, weights, centre, 1.0 - self.byz_fraction)

    def incremental(self) -> "IncrementalCTMA | None":
        """Return the incremental form, if the base has one."""
        base = incremental_of(self.base)
        return None if base is None else IncrementalCTMA(self, base)


@dataclass(frozen=True)
class IncrementalCTMA:
    """Incremental CTMA around an incremental base, whose state it uses."""

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
