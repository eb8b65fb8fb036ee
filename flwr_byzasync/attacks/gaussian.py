"""Gaussian noise: a faulty rather than a clever node (Blanchard et al. 2017)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_number
from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs
from flwr_byzasync.attacks.vector_statistics import clamped_like


@dataclass(frozen=True)
class Gaussian:
    """Send independent normal noise of mean zero, drawn anew for each reply.

    Parameters
    ----------
    deviation : float, default 200.0
        In (0, inf). 200 in the paper.

    Raises
    ------
    ConfigError
        If `deviation` is out of range.

    Examples
    --------
    >>> import torch
    >>> Gaussian().craft(torch.zeros(3), Knowledge(seed=1)).shape
    torch.Size([3])
    """

    deviation: float = 200.0

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="gaussian",
        needs=Needs.OWN_VECTOR,
        sources=("Blanchard et al. 2017, arXiv 1703.02757, section 5",),
    )

    def __post_init__(self) -> None:
        fix = "pass for example deviation=200.0"
        check_number("deviation", self.deviation, low=0, closed="neither", fix=fix)

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent; of the honest vector, only shape, dtype and device matter."""
        return clamped_like(self.deviation * normal(honest, knowledge), honest)


def normal(honest: Tensor, knowledge: Knowledge) -> Tensor:
    """Return standard normal numbers of a vector's shape, in float64 on the CPU."""
    return torch.randn(honest.shape, generator=knowledge.generator(), dtype=torch.float64)
