"""Weighted Krum: the row nearest to its neighbours (Blanchard et al. 2017, NeurIPS)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_byz_fraction
from flwr_byzasync.aggregators.krum_scores import krum_scores
from flwr_byzasync.aggregators.numerics import combine, heaviest_row
from flwr_byzasync.aggregators.rule import Law, RuleInfo, WeightedRule
from flwr_byzasync.aggregators.selection import TIE


def krum_bound(lam: float) -> float:
    """Return Krum's sharp constant, for λ in [0, 1/2).

    ``(1 − λ)(1 + 2λ)/(1 − 2λ)²`` up to λ = 1/4, ``9λ/(1 − 2λ)`` up to 1/3, then
    ``1/(λ(1 − 2λ))``.
    """
    honest = 1.0 - 2.0 * lam
    if lam <= 0.25:
        return (1.0 - lam) * (1.0 + 2.0 * lam) / honest**2
    return 9.0 * lam / honest if lam <= 1.0 / 3.0 else 1.0 / (lam * honest)


def published_krum_bound(lam: float) -> float:
    """Return ``6 (1 + λ/(1 − 2λ))``."""
    return 6.0 * (1.0 + lam / (1.0 - 2.0 * lam))


@dataclass(frozen=True)
class Krum(WeightedRule):
    """The row of smallest score.

    The score of row i is ``Σ_j ν_j ‖x_i − x_j‖²`` over its nearest rows, itself included, until
    their weight reaches ``(1 − λ) S``, the last one only with the weight still missing. Rows
    with scores equal up to a factor 1 + 1e-12 are averaged in proportion to their weights.

    At n equal weights and f = λn the published score sums over the n − f − 2 nearest other
    rows, this one over n − f − 1 (itself adds 0), and ties are averaged instead of resolved
    to the first row. Because a neighbourhood holds a fixed share of the weight, a weight s means
    s copies, whatever the unit of the weights.

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
    ``‖A − x̄_G‖² <= c ρ²`` with c = ``(1 − λ)(1 + 2λ)/(1 − 2λ)²`` for λ <= 1/4,
    ``9λ/(1 − 2λ)`` for λ in [1/4, 1/3] and ``1/(λ(1 − 2λ))`` beyond: sharp as a supremum, proved
    in docs/theory/krum.md (published: 6(1 + λ/(1 − 2λ))). It covers any true share up to
    `byz_fraction`, and none beyond.
    Without ties the result is exactly one of the rows.
    No rule's constant is below λ/(1 − 2λ).

    Cost
    ----
    All pairs of rows, O(m² d), and m² numbers of memory.

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[0.0], [1.0], [3.0], [100.0]])
    >>> Krum(byz_fraction=0.25)(rows, torch.ones(4))
    tensor([1.])
    """

    byz_fraction: float

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="krum",
        laws=frozenset(Law),
        bound=krum_bound,
        sources=("Blanchard et al. 2017, NeurIPS", "docs/theory/krum.md"),
        published=published_krum_bound,
    )

    def __post_init__(self) -> None:
        check_byz_fraction("byz_fraction", self.byz_fraction)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the mean of the rows of smallest score."""
        scores = krum_scores(rows, weights, 1.0 - self.byz_fraction)
        best = scores <= scores.min() * (1.0 + TIE)
        chosen = torch.where(best, weights.to(torch.float64), 0.0)
        chosen = chosen / chosen.sum()
        return combine(rows, chosen, heaviest_row(rows, chosen))
