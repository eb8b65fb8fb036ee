"""Stale replay: an honest vector of long ago, which no look at one reply tells from a slow node."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_byzasync._checks import check_integer
from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs


@dataclass(frozen=True)
class StaleReplay:
    """Send the honest vector of `age` replies ago; until there is one, the oldest.

    Its staleness is of the node's own replies and comes on top of the server's, which the
    server cannot see: the reply answers the latest query.

    Parameters
    ----------
    age : int, default 10
        >= 1. Ten replies ago is ten times the staleness of a node at its honest pace. The node
        keeps as many vectors.

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
        sources=("this package: replays are refused as messages, not as vectors",),
    )

    def __post_init__(self) -> None:
        check_integer("age", self.age, low=1, fix="pass for example age=10")

    @property
    def memory(self) -> int:
        """As many vectors as `age`."""
        return self.age

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return what is sent."""
        past = (*knowledge.history[-self.age :], honest)
        return past[0].to(device=honest.device, dtype=honest.dtype, copy=True)
