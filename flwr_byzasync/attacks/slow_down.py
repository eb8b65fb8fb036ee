"""Slow down: reply as late as the server accepts, for the largest staleness."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from flwr_byzasync._checks import check_number
from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs, VectorAttack
from flwr_byzasync.attacks.base_attack import OverBase, check_base, craft_base


@dataclass(frozen=True)
class SlowDown(OverBase):
    """Delay each reply until `total_delay` seconds after its query.

    Parameters
    ----------
    total_delay : float, default 540.0
        Seconds from query to reply, in [0, inf). 90 % of the strategy's default timeout of 600 s,
        so that transport and polling do not make the reply too late. A reply that takes longer by
        itself is not delayed.
    base : VectorAttack or None, default None
        The attack on the vector; None for the honest vector.

    Raises
    ------
    ConfigError
        If `total_delay` is out of range, or `base` is not an attack on the vector, or is one on
        time.

    Examples
    --------
    >>> import numpy as np
    >>> SlowDown(total_delay=60.0).delay(np.random.default_rng(0), honest_delay=2.5)
    57.5
    """

    total_delay: float = 540.0
    base: VectorAttack | None = None

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="slow_down",
        needs=Needs.OWN_VECTOR,
        sources=("this package: the largest staleness that `reply_timeout` allows",),
    )

    def __post_init__(self) -> None:
        fix = "pass for example total_delay=540.0"
        check_number("total_delay", self.total_delay, low=0, closed="left", fix=fix)
        check_base(self.base, optional=True)

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        return craft_base(self.base, honest, knowledge)

    def delay(self, rng: np.random.Generator, honest_delay: float) -> float:
        """Return the seconds missing up to `total_delay`."""
        del rng
        return max(0.0, self.total_delay - honest_delay)
