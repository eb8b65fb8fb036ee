"""What an attack declares about itself."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor


class Needs(Enum):
    """What a Byzantine node must know or touch to mount an attack."""

    OWN_VECTOR = "the vector that it would honestly send"
    OWN_LABELS = "the labels of its own data"


@dataclass(frozen=True)
class Attack:
    """Declaration of a class of attacks.

    Parameters
    ----------
    name : str
        Name in `discover` and in run-configs.
    needs : Needs
        What it must know.
    sources : tuple of str
        Where it is described.
    """

    name: str
    needs: Needs
    sources: tuple[str, ...]


@runtime_checkable
class VectorAttack(Protocol):
    """An attack on what is sent: ``craft(honest) -> sent``, flat (d,) to flat (d,)."""

    ATTACK: ClassVar[Attack]

    def craft(self, honest: Tensor) -> Tensor:
        """Return what is sent instead of the honest vector."""
        ...


@runtime_checkable
class LabelAttack(Protocol):
    """An attack on the data: ``transform(labels, classes) -> labels``."""

    ATTACK: ClassVar[Attack]

    def transform(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels that the node trains on."""
        ...
