"""Infinity and NaN: one careless sum spreads them to the whole model."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs

SOURCE = "this package: tests `Reason.NON_FINITE`"


@dataclass(frozen=True)
class Infinite:
    """Send infinity in every coordinate.

    Examples
    --------
    >>> import torch
    >>> Infinite().craft(torch.tensor([1.0, -2.0]))
    tensor([inf, inf])
    """

    INFO: ClassVar[AttackInfo] = AttackInfo(name="inf", needs=Needs.OWN_VECTOR, sources=(SOURCE,))

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        del knowledge
        return torch.full_like(honest, torch.inf)


@dataclass(frozen=True)
class NotANumber:
    """Send NaN in every coordinate.

    Examples
    --------
    >>> import torch
    >>> NotANumber().craft(torch.tensor([1.0, -2.0]))
    tensor([nan, nan])
    """

    INFO: ClassVar[AttackInfo] = AttackInfo(name="nan", needs=Needs.OWN_VECTOR, sources=(SOURCE,))

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        del knowledge
        return torch.full_like(honest, torch.nan)
