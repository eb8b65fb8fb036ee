"""Weighted mean: not robust; a baseline and negative control."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync.aggregators.numerics import combine, heaviest_row
from flwr_byzasync.aggregators.rule import Law, RuleInfo, WeightedRule


@dataclass(frozen=True)
class Mean(WeightedRule):
    """Weighted mean ``Σ s_i x_i / S``.

    Guarantees
    ----------
    None for any λ > 0: one row of any weight moves it arbitrarily far.

    Cost
    ----
    One pass over the rows, O(m d).

    Examples
    --------
    >>> import torch
    >>> Mean()(torch.tensor([[0.0], [4.0]]), torch.tensor([3, 1]))
    tensor([1.])
    """

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="mean", laws=frozenset(Law), bound=None, sources=("not robust: negative control",)
    )

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded weighted mean."""
        shares = weights.to(torch.float64) / weights.sum()
        return combine(rows, shares, heaviest_row(rows, weights))
