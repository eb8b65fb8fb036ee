"""Weighted Multi-Krum: mean of the rows of smallest Krum scores (Blanchard et al. 2017)."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from torch import Tensor

from flwr_byzasync._checks import check_byz_fraction, check_number
from flwr_byzasync.aggregators.krum_scores import krum_scores
from flwr_byzasync.aggregators.numerics import combine, heaviest_row
from flwr_byzasync.aggregators.rule import Law, RuleInfo, WeightedRule
from flwr_byzasync.aggregators.selection import keep_nearest


def multi_krum_bound(lam: float) -> float:
    """Return the constant for a share of 1 − λ: ``4λ/(1 − 2λ)`` for λ <= 1/3.

    Beyond, ``(√λ³ + √(1 − 3λ + 3λ²))²/((1 − λ)²(1 − 2λ))``.
    """
    if lam <= 1.0 / 3.0:
        return 4.0 * lam / (1.0 - 2.0 * lam)
    root = sqrt(lam**3) + sqrt(1.0 - 3.0 * lam + 3.0 * lam * lam)
    return root**2 / ((1.0 - lam) ** 2 * (1.0 - 2.0 * lam))


def small_share_bound(lam: float) -> float:
    """Return ``(√λ + √(2(1 − λ)))²/(1 − 2λ)``, for any share up to 1 − λ."""
    return (sqrt(lam) + sqrt(2.0 * (1.0 - lam))) ** 2 / (1.0 - 2.0 * lam)


@dataclass(frozen=True)
class MultiKrum(WeightedRule):
    """Weighted mean of the rows of smallest Krum scores that hold a share of the weight.

    The scores are those of `Krum`. The last row is taken only with the weight still missing;
    rows of equal scores share it in proportion to their weights. At n equal weights and
    f = λn this is the published rule with n − f rows, except that scores count one more
    neighbour, and for ties.

    Parameters
    ----------
    byz_fraction : float
        λ in [0, 1/2): the largest share of the weight that Byzantine nodes may hold.
    share : float, optional
        Share of the weight to average, in (0, 1 − λ]; 1 − λ by default. With a small share the
        rule is `Krum`. Beyond 1 − λ one far row could not be excluded.

    Raises
    ------
    ConfigError
        If `byz_fraction` or `share` is out of range.

    Guarantees
    ----------
    ``‖A − x̄_G‖² <= 4λ/(1 − 2λ) ρ²`` for λ <= 1/3, sharp as a supremum;
    ``(√λ³ + √(1 − 3λ + 3λ²))²/((1 − λ)²(1 − 2λ)) ρ²`` beyond; for a smaller share
    ``(√λ + √(2(1 − λ)))²/(1 − 2λ) ρ²``. Proved in docs/theory/krum.md. They cover any true
    share of liars up to `byz_fraction`, and none beyond.
    No rule's constant is below λ/(1 − 2λ).

    Cost
    ----
    All pairs of rows, O(m² d), and m² numbers of memory.

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[0.0], [1.0], [2.0], [100.0]])
    >>> MultiKrum(byz_fraction=0.25)(rows, torch.ones(4))
    tensor([1.])
    """

    byz_fraction: float
    share: float | None = None

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="multi_krum",
        laws=frozenset(Law),
        bound=multi_krum_bound,
        sources=("Blanchard et al. 2017, NeurIPS", "docs/theory/krum.md"),
    )

    def __post_init__(self) -> None:
        lam = check_byz_fraction("byz_fraction", self.byz_fraction)
        if self.share is not None:
            fix = "leave it out to average 1 - byz_fraction of the weight"
            check_number("share", self.share, low=0.0, high=1.0 - lam, closed="right", fix=fix)

    def bound(self, lam: float) -> float | None:
        """c_λ at λ = `byz_fraction` for any share of liars up to it, else None."""
        mine = self.byz_fraction
        if lam > mine:
            return None
        whole = self.share is None or self.share == 1.0 - mine
        return multi_krum_bound(mine) if whole else small_share_bound(mine)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the mean of the rows of smallest scores."""
        scores = krum_scores(rows, weights, 1.0 - self.byz_fraction)
        share = 1.0 - self.byz_fraction if self.share is None else self.share
        kept = keep_nearest(scores, weights, share)
        return combine(rows, kept / kept.sum(), heaviest_row(rows, kept))
