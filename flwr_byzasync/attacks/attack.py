"""The attack protocols: what an attack declares, what it may know, and what it changes."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from flwr_byzasync.aggregators import Aggregator


class Needs(Enum):
    """What a Byzantine node must know or control to mount an attack."""

    OWN_VECTOR = "the vector that it would honestly send"
    OWN_LABELS = "the labels of its own data"
    COLLUDERS = "statistics of honest vectors, which colluders can estimate from their own"
    EVERYTHING = "the latest vector and the weight of every honest node, and the server's rule"


@dataclass(frozen=True)
class AttackInfo:
    """Declaration of a class of attacks.

    Parameters
    ----------
    name : str
        Name in `discover` and in run-configs.
    needs : Needs
        The minimum that it must know.
    sources : tuple of str
        References for the attack and for the defaults of its parameters.
    aliases : tuple of str
        Other names that `build` accepts; `discover` lists an attack under `name` alone.
    """

    name: str
    needs: Needs
    sources: tuple[str, ...]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Knowledge:
    """What a Byzantine node knows when it replies, besides its own honest vector.

    Parameters
    ----------
    rows : Tensor, optional
        (n, d) latest vectors of the honest nodes or, if colluders estimate, vectors that they
        would honestly send themselves. None before the first.
    weights : Tensor, optional
        (n,) int64, positive: accepted replies behind each row.
    honest_weight : int, optional
        S − S_B: replies of all honest nodes so far. None if unknown.
    byzantine_weight : int, optional
        S_B: replies of all Byzantine nodes, including this one. None if unknown.
    rule : Aggregator, optional
        The rule that the server is assumed to use.
    history : tuple of Tensor
        The node's own honest vectors of earlier replies, oldest first, at most ``memory``.
    reply : int
        Number of replies that this node has sent before.
    seed : int
        Random seed of this node.
    """

    rows: Tensor | None = None
    weights: Tensor | None = None
    honest_weight: int | None = None
    byzantine_weight: int | None = None
    rule: Aggregator | None = None
    history: tuple[Tensor, ...] = ()
    reply: int = 0
    seed: int = 0

    def generator(self) -> torch.Generator:
        """Return a fresh generator on the CPU, in the same state at every call."""
        mixed = np.random.SeedSequence([self.seed, self.reply]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))


ALONE = Knowledge()
"""The knowledge of a node that knows only its own vector."""


@runtime_checkable
class VectorAttack(Protocol):
    """An attack on the vector sent: maps a flat (d,) to a new (d,) of the same dtype and device.

    It is pure: it writes no input, and draws only from ``knowledge.generator()``. An attack that
    uses earlier vectors sets ``memory`` to their number; one whose settings change what it needs
    has an attribute ``needs``; one on time has a method `TimedAttack.delay`.
    """

    INFO: ClassVar[AttackInfo]

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent instead of the honest one."""
        ...


@runtime_checkable
class TimedAttack(Protocol):
    """An attack on the arrival time of replies."""

    def delay(self, rng: np.random.Generator, honest_delay: float) -> float:
        """Return seconds to add to the honest delay, at least ``−honest_delay``."""
        ...


@runtime_checkable
class LabelAttack(Protocol):
    """An attack on the data: ``transform(labels, classes) -> labels``."""

    INFO: ClassVar[AttackInfo]

    def transform(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels that the node trains on."""
        ...


def needs_of(attack: VectorAttack | LabelAttack) -> Needs:
    """Return what this instance needs, which its settings may change."""
    needs: Needs = getattr(attack, "needs", attack.INFO.needs)
    return needs


def memory_of(attack: VectorAttack) -> int:
    """Return how many of a node's own earlier honest vectors an attack uses."""
    return int(getattr(attack, "memory", 0))


def needs_rule(attack: VectorAttack) -> bool:
    """Return whether an attack optimises its strength against the server's rule."""
    return bool(getattr(attack, "needs_rule", False))
