"""Base for attacks on time, which send the vector of another attack, their base."""

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
    """An attack that sends the vector of its base; None stands for the honest vector."""

    @property
    def base(self) -> VectorAttack | None:
        """The base."""
        ...


class OverBase:
    """Takes needs and memory from the base, which uses the knowledge."""

    @property
    def needs(self: HasBase) -> Needs:
        """What the base needs."""
        return Needs.OWN_VECTOR if self.base is None else needs_of(self.base)

    @property
    def needs_rule(self: HasBase) -> bool:
        """Whether the base optimises its strength against the server's rule."""
        return self.base is not None and needs_rule(self.base)

    @property
    def memory(self: HasBase) -> int:
        """Number of earlier vectors that the base uses."""
        return 0 if self.base is None else memory_of(self.base)


def check_base(base: object, *, optional: bool) -> None:
    """Raise unless `base` is an attack on the vector only, or None where that is legal.

    Raises
    ------
    ConfigError
        If it is not an attack, or is one on labels or on time.
    """
    if base is None and optional:
        return
    if not isinstance(base, VectorAttack) or isinstance(base, TimedAttack):
        legal = "an attack on the vector sent, not on labels or on time"
        raise ConfigError("base", base, legal, "pass for example base=SignFlip()")


def craft_base(base: VectorAttack | None, honest: Tensor, knowledge: Knowledge) -> Tensor:
    """Return the vector that the base sends."""
    return honest.clone() if base is None else base.craft(honest, knowledge)
