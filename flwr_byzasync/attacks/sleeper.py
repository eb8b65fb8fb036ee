"""Sleeper: honest until it has weight, then hostile with all of it."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from flwr_byzasync._checks import check_integer
from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs, VectorAttack
from flwr_byzasync.attacks.base_attack import OverBase, check_base, craft_base
from flwr_byzasync.attacks.sign_flip import SignFlip


@dataclass(frozen=True)
class Sleeper(OverBase):
    """Alternate `honest_for` honest replies and `hostile_for` replies of a base attack.

    A node's latest vector counts with the weight of all its replies, including the honest ones,
    and defences based on past behaviour find a good record.

    Parameters
    ----------
    honest_for, hostile_for : int, default 20
        Replies in a row, >= 1. 20 is twice the time constant of momentum 0.9, so that each
        phase takes full effect.
    base : VectorAttack, default SignFlip()
        The attack in hostile phases. It gets the number of all replies.

    Raises
    ------
    ConfigError
        If a number is out of range, or `base` is not an attack on the vector, or is one on time:
        write ``Flood(base=Sleeper())``, not the other way round.

    Examples
    --------
    >>> import torch
    >>> attack = Sleeper(honest_for=2, hostile_for=1)
    >>> [attack.craft(torch.ones(1), Knowledge(reply=k)).item() for k in range(6)]
    [1.0, 1.0, -1.0, 1.0, 1.0, -1.0]
    """

    honest_for: int = 20
    hostile_for: int = 20
    base: VectorAttack = field(default_factory=SignFlip)

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="sleeper",
        needs=Needs.OWN_VECTOR,
        sources=("this package: weights are counts of all accepted replies",),
    )

    def __post_init__(self) -> None:
        check_integer("honest_for", self.honest_for, low=1, fix="pass for example honest_for=20")
        check_integer("hostile_for", self.hostile_for, low=1, fix="pass for example hostile_for=20")
        check_base(self.base, optional=False)

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        asleep = knowledge.reply % (self.honest_for + self.hostile_for) < self.honest_for
        return craft_base(None if asleep else self.base, honest, knowledge)
