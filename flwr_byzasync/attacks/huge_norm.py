"""Huge norm: finite, and as large as the server accepts."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_byzasync._checks import check_number
from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs
from flwr_byzasync.attacks.vector_statistics import clamped_like, direction_of


@dataclass(frozen=True)
class HugeNorm:
    """Send a vector of fixed norm, opposite to the honest one.

    Parameters
    ----------
    norm : float, default 1e30
        In (0, inf). The square of 1e30 overflows float32: a rule that squares in float32
        returns infinity or NaN. Above 1e150 the server refuses a vector.

    Raises
    ------
    ConfigError
        If `norm` is out of range.

    Notes
    -----
    If the honest vector is zero, the direction is −(1, ..., 1). Coordinates beyond the dtype
    become its largest finite values.

    Examples
    --------
    >>> import torch
    >>> HugeNorm(norm=50.0).craft(torch.tensor([3.0, -4.0]))
    tensor([-30.,  40.])
    """

    norm: float = 1e30

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="huge_norm",
        needs=Needs.OWN_VECTOR,
        sources=("Blanchard et al. 2017, arXiv 1703.02757, lemma 1: no linear rule withstands it",),
    )

    def __post_init__(self) -> None:
        check_number("norm", self.norm, low=0, closed="neither", fix="pass for example norm=1e30")

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        del knowledge
        return clamped_like(-self.norm * direction_of(honest), honest)
