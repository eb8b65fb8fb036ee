"""Clipping of each row by its norm (Pascanu, Mikolov and Bengio 2013, ICML, arXiv 1211.5063)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_number
from flwr_byzasync.aggregators.numerics import column_blocks, norms
from flwr_byzasync.aggregators.rule import Aggregator, Law, MetaRule, RuleInfo, aggregate_float64
from flwr_byzasync.aggregators.selection import TIE


@dataclass(frozen=True)
class Clipping(MetaRule):
    """Clip rows to the norm τ, then apply the base.

    ``base(y, s)`` with ``y_i = x_i min(1, τ/‖x_i‖)``.

    Parameters
    ----------
    base : Aggregator
        The rule applied to the clipped rows: any rule, including third-party ones.
    threshold : float, default 1.0
        τ in (0, inf), in the units of the rows. 1 is common for gradients, but the right
        value depends on the task: inspect the norms of honest rows.

    Raises
    ------
    ConfigError
        If `base` cannot be called or `threshold` is out of range.

    Guarantees
    ----------
    No constant: equal honest rows longer than τ are moved to norm τ. If all honest rows are at
    most τ long, the base's bound holds. Always ``‖A − x̄_G‖ <= √c ρ + E_G (‖x‖ − τ)₊``, c the
    base's constant; proved in docs/theory/clipping.md.

    Cost
    ----
    Two passes and an (m, d) copy in float64, then the base.

    Examples
    --------
    >>> import torch
    >>> from flwr_byzasync.aggregators import Mean
    >>> Clipping(Mean(), threshold=2.0)(torch.tensor([[1.0], [2.0], [90.0]]), torch.ones(3))
    tensor([1.6667])
    """

    base: Aggregator
    threshold: float = 1.0

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="clipping",
        laws=frozenset({Law.COPIES, Law.PERMUTATION, Law.WEIGHT_SCALE}),
        bound=None,
        sources=("Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063", "docs/theory/clipping.md"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fix = "pass for example threshold=1.0, a norm that honest rows seldom exceed"
        check_number("threshold", self.threshold, low=0.0, closed="neither", fix=fix)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the base's unrounded result on the clipped rows."""
        return aggregate_float64(self.base, clip(rows, norms(rows), self.threshold), weights)


def clip(rows: Tensor, norm: Tensor, threshold: Tensor | float) -> Tensor:
    """Return rows in float64, scaled to the threshold if their norm exceeds it.

    Parameters
    ----------
    rows, norm : Tensor
        (m, d) and (m,), `norm` from `norms`.
    threshold : Tensor or float
        >= 0.

    Returns
    -------
    Tensor
        (m, d) float64. Rows within the threshold are unchanged, bit for bit.
    """
    # A norm that exceeds the threshold only by rounding does not count as beyond it.
    beyond = norm > threshold * (1.0 + TIE)
    factor = torch.where(beyond, threshold / norm, 1.0).unsqueeze(1)
    return torch.cat([x * factor for x in column_blocks(rows)], dim=1)
