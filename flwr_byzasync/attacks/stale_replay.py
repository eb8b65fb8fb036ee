"""Stale replay: an old honest vector, indistinguishable from the reply of a slow node."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_byzasync._checks import check_integer
from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs


@dataclass(frozen=True)
class StaleReplay:
    """Send the honest vector of `age` replies ago, or the oldest until there is one.

    This staleness is on top of the one that the server measures, and the server cannot observe
    it: the reply answers the latest query.

    Parameters
    ----------
    age : int, default 10
        >= 1. Ten replies are ten times the staleness of an honest node of that pace. The node
        keeps this many vectors.

    Raises
    ------
    ConfigError
        If `age` is out of range.

    Examples
    --------
    >>> import torch
    >>> past = tuple(torch.tensor([float(k)]) for k in range(5))
    >>> StaleReplay(age=2).craft(torch.tensor([5.0]), Knowledge(history=past))
    tensor([3.])
    """

    age: int = 10

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="stale_replay",
        needs=Needs.OWN_VECTOR,
        sources=("this package: replayed messages are refused, replayed vectors are not",),
    )

    def __post_init__(self) -> None:
        check_integer("age", self.age, low=1, fix="pass for example age=10")

    @property
    def memory(self) -> int:
        """`age` vectors."""
        return self.age

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        past = (*knowledge.history[-self.age :], honest)
        return past[0].to(device=honest.device, dtype=honest.dtype, copy=True)
