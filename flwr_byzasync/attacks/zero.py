"""Zero: a plain free-rider, a node that does no work but keeps its weight."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs


@dataclass(frozen=True)
class Zero:
    """Send zeros; with models as replies, the model as received.

    Examples
    --------
    >>> import torch
    >>> Zero().craft(torch.tensor([1.0, -2.0]))
    tensor([0., 0.])
    """

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="zero",
        needs=Needs.OWN_VECTOR,
        sources=("Fraboni et al. 2021, arXiv 2006.11901: plain free-riders",),
    )

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        del knowledge
        return torch.zeros_like(honest)
