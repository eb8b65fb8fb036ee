"""Byzantine behaviour, one attack a file, for tests and for simulations."""

from collections.abc import Mapping
from functools import cache

from flwr_byzasync.attacks.attack import (
    Attack,
    Knowledge,
    LabelAttack,
    Needs,
    TimedAttack,
    VectorAttack,
)
from flwr_byzasync.attacks.label_flip import LabelFlip
from flwr_byzasync.attacks.sign_flip import SignFlip
from flwr_byzasync.discovery import declared

__all__ = [
    "Attack",
    "Knowledge",
    "LabelAttack",
    "LabelFlip",
    "Needs",
    "SignFlip",
    "TimedAttack",
    "VectorAttack",
    "discover",
]


@cache
def discover() -> Mapping[str, type[VectorAttack] | type[LabelAttack]]:
    """Return every attack of this package by name, read off the files' declarations.

    Examples
    --------
    >>> discover()["sign_flip"].__name__
    'SignFlip'
    """
    return declared(__name__, "ATTACK")
