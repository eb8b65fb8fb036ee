"""One coordinate: the whole deviation in a single coordinate (El Mhamdi et al. 2018, ICML)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_integer, check_number
from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs
from flwr_byzasync.attacks.vector_statistics import clamped_like, norm_of


@dataclass(frozen=True)
class OneCoordinate:
    """Send the honest vector with ``scale · ‖honest‖`` added to one coordinate.

    Distances between honest vectors of d coordinates are √d times their differences in one. A
    rule based on distances accepts all of it in one coordinate, which is then off by about √d
    times its honest differences; a coordinate-wise rule does not.

    Parameters
    ----------
    scale : float, default 1.0
        In (0, inf); at 1 the norm grows by at most a factor of 2, √2 in high dimension. The
        paper searches for the largest value that a known rule accepts.
    coordinate : int, default 0
        Index of the coordinate, >= 0, modulo d. The same for all colluders, as in the paper.

    Raises
    ------
    ConfigError
        If a parameter is out of range.

    Examples
    --------
    >>> import torch
    >>> OneCoordinate().craft(torch.tensor([3.0, 4.0]))
    tensor([8., 4.])
    """

    scale: float = 1.0
    coordinate: int = 0

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="one_coordinate",
        needs=Needs.OWN_VECTOR,
        sources=("El Mhamdi et al. 2018, arXiv 1802.07927, section 3",),
    )

    def __post_init__(self) -> None:
        check_number("scale", self.scale, low=0, closed="neither", fix="pass for example scale=1.0")
        fix = "pass for example coordinate=0"
        check_integer("coordinate", self.coordinate, low=0, fix=fix)

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        del knowledge
        sent = honest.to(torch.float64, copy=True)
        sent[self.coordinate % len(honest)] += self.scale * norm_of(honest)
        return clamped_like(sent, honest)
