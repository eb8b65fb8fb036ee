"""CGE: comparative gradient elimination (Gupta, Liu and Vaidya 2020), in weighted form."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_byzasync._checks import check_byz_fraction
from flwr_byzasync.aggregators.numerics import combine, heaviest_row, norms
from flwr_byzasync.aggregators.rule import Law, RuleInfo, WeightedRule
from flwr_byzasync.aggregators.selection import keep_nearest


@dataclass(frozen=True)
class CGE(WeightedRule):
    """Weighted mean of the rows of smallest norm.

    Rows are taken in order of ``‖x_i‖`` until they hold ``(1 − λ) S`` of the weight; rows of
    equal norm share the weight still missing in proportion to their weights.

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
    No c_λ exists for λ > 0: honest rows all at x and a liar of weight λS at 0 have ρ = 0, and
    the result is ``(1 − 2λ)/(1 − λ) x``. What holds instead is a bound on the length of the
    error, ``‖A − x̄_G‖² <= 4λ/(1 − λ) (ρ² + ‖x̄_G‖²)``: docs/theory/cge.md. It does not
    commute with translation, because it depends on the origin.

    Cost
    ----
    Two passes over the rows, O(m d).

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[1.0], [2.0], [3.0], [-100.0]])
    >>> CGE(byz_fraction=0.25)(rows, torch.ones(4))
    tensor([2.])
    """

    byz_fraction: float

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="cge",
        laws=frozenset(Law) - {Law.TRANSLATION},
        bound=None,
        sources=("Gupta, Liu, Vaidya 2020, arXiv 2008.04699", "docs/theory/cge.md"),
    )

    def __post_init__(self) -> None:
        check_byz_fraction("byz_fraction", self.byz_fraction)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded mean of the shortest rows."""
        # The origin is exact, so norms carry only their own rounding.
        kept = keep_nearest(norms(rows), weights, 1.0 - self.byz_fraction)
        return combine(rows, kept / kept.sum(), heaviest_row(rows, kept))
