"""w-ARC: adaptive robust clipping (Allouah et al. 2024, arXiv 2405.14432)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_byzasync._checks import check_byz_fraction
from flwr_byzasync.aggregators.bounds import published_median_bound, sharp_bound
from flwr_byzasync.aggregators.clipping import clip
from flwr_byzasync.aggregators.numerics import norms
from flwr_byzasync.aggregators.rule import (
    Aggregator,
    Law,
    MetaRule,
    RuleInfo,
    aggregate_float64,
)
from flwr_byzasync.aggregators.selection import clipping_threshold


def arc_bound(lam: float, base: float) -> float:
    """Return ``c + 2λ/(1 − 2λ)``, the constant over a base with constant c."""
    return base + 2.0 * lam / (1.0 - 2.0 * lam)


@dataclass(frozen=True)
class ARC(MetaRule):
    """Clip the longest rows to the largest norm of the others, then apply the base.

    Rows longer than τ are clipped to τ, the smallest norm beyond which at most 2λ(1 − λ) S of
    the weight lies. With equal weights and λ = f/n these are the ⌊2(f/n)(n − f)⌋ longest rows,
    as published.

    Parameters
    ----------
    base : Aggregator
        The rule applied to the clipped rows: any rule, including third-party ones.
    byz_fraction : float
        λ in [0, 1/2): the largest share of the weight that Byzantine nodes may hold.

    Raises
    ------
    ConfigError
        If `base` cannot be called or `byz_fraction` is out of range.

    Guarantees
    ----------
    ``‖A − x̄_G‖² <= (c + 2λ/(1 − 2λ)) ρ²`` over a base with constant c at λ, proved in
    docs/theory/clipping.md, the weighted form of the published constant; at most 3 c, as no
    rule's c is below λ/(1 − 2λ). The bound covers any true share up to `byz_fraction`. Clipping
    depends on the origin: it does not commute with translation.

    Cost
    ----
    Two passes and an (m, d) copy in float64, then the base.

    Examples
    --------
    >>> import torch
    >>> from flwr_byzasync.aggregators import Mean
    >>> rows = torch.tensor([[1.0], [2.0], [3.0], [90.0]])
    >>> ARC(Mean(), byz_fraction=0.25)(rows, torch.ones(4))
    tensor([2.2500])
    """

    base: Aggregator
    byz_fraction: float

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="arc",
        laws=frozenset(Law) - {Law.TRANSLATION, Law.HULL},
        bound=lambda lam: arc_bound(lam, sharp_bound(lam)),
        sources=("Allouah et al. 2024, arXiv 2405.14432, section 3", "docs/theory/clipping.md"),
        published=lambda lam: arc_bound(lam, published_median_bound(lam)),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_byz_fraction("byz_fraction", self.byz_fraction)

    def bound_over(self, lam: float, base: float) -> float:
        """Return the constant over a base with constant `base`."""
        return arc_bound(lam, base)

    def published_bound_over(self, lam: float, base: float) -> float:
        """Return the published constant over a base with constant `base`."""
        return arc_bound(lam, base)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the base's unrounded result on the clipped rows."""
        norm = norms(rows)
        share = 2.0 * self.byz_fraction * (1.0 - self.byz_fraction)
        threshold = clipping_threshold(norm, weights, share)
        return aggregate_float64(self.base, clip(rows, norm, threshold), weights)
