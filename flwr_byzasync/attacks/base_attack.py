"""What attacks on time have in common: when they strike, another attack says with what."""

from typing import Protocol

from torch import Tensor

from flwr_byzasync.attacks.attack import (
    Knowledge,
    Needs,
    TimedAttack,
    VectorAttack,
    memory_of,
    needs_of,
    needs_rule,
)
from flwr_byzasync.errors import ConfigError


class HasBase(Protocol):
    """An attack with a base: what it sends; None for the honest vector."""

    @property
    def base(self) -> VectorAttack | None:
        """The base."""
        ...


class OverBase:
    """Needs and memory are the base's: it is the one who reads the knowledge."""

    @property
    def needs(self: HasBase) -> Needs:
        """What the base needs."""
        return Needs.OWN_VECTOR if self.base is None else needs_of(self.base)

    @property
    def needs_rule(self: HasBase) -> bool:
        """Whether the base is searched against the server's rule."""
        return self.base is not None and needs_rule(self.base)

    @property
    def memory(self: HasBase) -> int:
        """Earlier vectors that the base wants."""
        return 0 if self.base is None else memory_of(self.base)


def check_base(base: object, *, optional: bool) -> None:
    """Raise unless `base` is an attack on what is sent alone, or None where that is legal.

    Raises
    ------
    ConfigError
        If it is no attack, one on labels, or has a delay of its own.
    """
    if base is None and optional:
        return
    if not isinstance(base, VectorAttack) or isinstance(base, TimedAttack):
        legal = "an attack on what is sent, not on labels or on time"
        raise ConfigError("base", base, legal, "pass for example base=SignFlip()")


def craft_base(base: VectorAttack | None, honest: Tensor, knowledge: Knowledge) -> Tensor:
    """Return what the base sends."""
    return honest.clone() if base is None else base.craft(honest, knowledge)
