"""Sign flip: send the opposite of the honest vector (Allen-Zhu et al. 2021, ICLR)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_number
from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs
from flwr_byzasync.attacks.vector_statistics import clamped_like


@dataclass(frozen=True)
class SignFlip:
    """Send ``−scale · honest``; the node's own estimator state stays honest.

    Parameters
    ----------
    scale : float, default 1.0
        In (0, inf); 1 in the paper.

    Raises
    ------
    ConfigError
        If `scale` is out of range.

    Examples
    --------
    >>> import torch
    >>> SignFlip().craft(torch.tensor([1.0, -2.0]))
    tensor([-1.,  2.])
    """

    scale: float = 1.0

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="sign_flip",
        needs=Needs.OWN_VECTOR,
        sources=("Allen-Zhu et al. 2021, arXiv 2012.14368", "Dahan and Levy 2024, section 5"),
    )

    def __post_init__(self) -> None:
        check_number("scale", self.scale, low=0, closed="neither", fix="pass for example scale=1.0")

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        del knowledge
        return clamped_like(-self.scale * honest.to(torch.float64), honest)
