"""Flood: reply immediately, because each accepted reply adds weight."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs, VectorAttack
from flwr_byzasync.attacks.base_attack import OverBase, check_base, craft_base
from flwr_byzasync.attacks.sign_flip import SignFlip


@dataclass(frozen=True)
class Flood(OverBase):
    """Reply immediately, with the vector of a base attack.

    The weight of a node is the number of its accepted replies. A liar that does not compute can
    reach any share: the bound λ on the Byzantine share is an assumption, and this attack violates
    it unless the server caps shares.

    Parameters
    ----------
    base : VectorAttack or None, default SignFlip()
        The attack on the vector; None for the honest vector.

    Raises
    ------
    ConfigError
        If `base` is not an attack on the vector, or is one on time.

    Notes
    -----
    As a client mod in real time it only skips waiting: the node still computes the honest
    vector. On a virtual clock the reply arrives at the time of its query.

    Examples
    --------
    >>> import numpy as np
    >>> Flood().delay(np.random.default_rng(0), honest_delay=2.5)
    -2.5
    """

    base: VectorAttack | None = field(default_factory=SignFlip)

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="flood",
        needs=Needs.OWN_VECTOR,
        sources=("this package: docs/algorithm.md, λ bounds shares of the replies",),
    )

    def __post_init__(self) -> None:
        check_base(self.base, optional=True)

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        return craft_base(self.base, honest, knowledge)

    def delay(self, rng: np.random.Generator, honest_delay: float) -> float:
        """Return ``−honest_delay``."""
        del rng
        return -honest_delay
