"""Random direction: noise of honest norm, which no bound on the norm rejects."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_byzasync._checks import check_number
from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs
from flwr_byzasync.attacks.gaussian import normal
from flwr_byzasync.attacks.vector_statistics import clamped_like, direction_of, norm_of


@dataclass(frozen=True)
class RandomDirection:
    """Send a vector of uniform direction and length ``scale · ‖honest‖``.

    Parameters
    ----------
    scale : float, default 1.0
        In (0, inf); 1 is the norm of the node's honest vector.

    Raises
    ------
    ConfigError
        If `scale` is out of range.

    Examples
    --------
    >>> import torch
    >>> round(RandomDirection().craft(torch.tensor([3.0, 4.0])).norm().item(), 4)
    5.0
    """

    scale: float = 1.0

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="random",
        needs=Needs.OWN_VECTOR,
        sources=("this package: the Gaussian attack under bounded norms",),
    )

    def __post_init__(self) -> None:
        check_number("scale", self.scale, low=0, closed="neither", fix="pass for example scale=1.0")

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        direction = direction_of(normal(honest, knowledge)).to(honest.device)
        return clamped_like(self.scale * norm_of(honest) * direction, honest)
