"""Arrival processes: whose reply arrives next, drawn instead of timed."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from flwr_byzasync._checks import check_byz_fraction, check_choice, check_integer
from flwr_byzasync.errors import ConfigError

POWERS = {"uniform": 0, "id": 1, "id2": 2}
TURNS = ("code", "faithful")


@runtime_checkable
class ArrivalProcess(Protocol):
    """Chooses the order of arrivals, in place of computing and network times."""

    def next(self, arrival: int, waiting: Collection[int]) -> int:
        """Return the node whose reply is arrival number `arrival`, counted from 0.

        Must depend on its arguments alone: state of its own would be in no snapshot.

        Parameters
        ----------
        arrival : int
            Replies that have arrived before.
        waiting : collection of int
            Partition-ids of the nodes that owe a reply, at least one.
        """
        ...


@dataclass(frozen=True)
class PaperArrivals:
    """The arrivals of the paper's experiments.

    Nodes start together: arrivals 0 .. m − 1 are one of each, in order. From then on the turn
    is a Byzantine or an honest node's, and within the group a node is drawn with probability
    proportional to its rank, 1 for the first of the group, or to the rank's square.

    Parameters
    ----------
    nodes : int
        m, >= 1.
    byzantine : int
        Nodes with partition-id below it are Byzantine, in [0, m].
    byz_fraction : float
        λ in [0, 1/2): the share of arrivals that is Byzantine. At 0, or without Byzantine
        nodes, all turns are honest.
    within : {"id2", "id", "uniform"}
        Probability within a group: ∝ rank², ∝ rank, or equal.
    turns : {"code", "faithful"}
        "code", as the published code does: exactly every ⌈1/λ⌉-th arrival after the first pass
        is Byzantine, a third for λ = 0.4. "faithful", as the text says: the Byzantine share of
        all arrivals is brought to λ and kept at λ or just below it.
    seed : int
        Of the draws, >= 0.
    restart_every : int, optional
        Arrivals after which the count of the code's turns begins anew (the code does so at
        each evaluation), >= 1. None: never.

    Raises
    ------
    ConfigError
        If a setting is out of range.

    Notes
    -----
    Each draw is seeded by (seed, arrival): the order does not depend on who asks, or when.
    Dahan and Levy 2024, arXiv 2501.09621, section 5 and its published code.

    Examples
    --------
    >>> process = PaperArrivals(nodes=4, byzantine=2, byz_fraction=0.4, seed=1)
    >>> process.order(4)
    (0, 1, 2, 3)
    >>> sum(node < 2 for node in process.order(1000)[4:])  # a third, not 0.4
    332
    """

    nodes: int
    byzantine: int
    byz_fraction: float
    within: Literal["id2", "id", "uniform"] = "id2"
    turns: Literal["code", "faithful"] = "code"
    seed: int = 0
    restart_every: int | None = None

    def __post_init__(self) -> None:
        check_integer("nodes", self.nodes, low=1, fix="pass for example nodes=17")
        fix = "pass at most the number of nodes"
        check_integer("byzantine", self.byzantine, low=0, high=self.nodes, fix=fix)
        check_byz_fraction("byz_fraction", self.byz_fraction)
        check_choice("within", self.within, POWERS, fix="pass for example 'id2'")
        check_choice("turns", self.turns, TURNS, fix="pass for example 'code'")
        check_integer("seed", self.seed, low=0, fix="pass for example seed=1")
        if self.restart_every is not None:
            fix = "pass for example restart_every=250, or None"
            check_integer("restart_every", self.restart_every, low=1, fix=fix)
        if self.byzantine == self.nodes:
            legal = f"at most {self.nodes - 1} of {self.nodes} nodes"
            raise ConfigError("byzantine", self.byzantine, legal, "leave an honest node")

    def next(self, arrival: int, waiting: Collection[int]) -> int:
        """Return the node of arrival number `arrival` among those that owe a reply."""
        if arrival < self.nodes and arrival in waiting:
            return arrival
        turn = self._byzantine_turn(arrival)
        group = [node for node in sorted(waiting) if (node < self.byzantine) == turn]
        # A group in which no node owes a reply loses its turn.
        group = group or sorted(waiting)
        ranks = np.array([self._rank(node) for node in group], dtype=np.float64)
        shares = np.cumsum(ranks ** POWERS[self.within])
        draw = np.random.default_rng([self.seed, arrival]).random() * shares[-1]
        return group[int(np.searchsorted(shares, draw, side="right"))]

    def order(self, count: int) -> tuple[int, ...]:
        """Return the first `count` arrivals of a run in which every node always owes a reply."""
        everybody = range(self.nodes)
        return tuple(self.next(arrival, everybody) for arrival in range(count))

    def _rank(self, node: int) -> int:
        """Return the place in the node's group: the Byzantine ones start again at 1."""
        return 1 + (node if node < self.byzantine else node - self.byzantine)

    def _byzantine_turn(self, arrival: int) -> bool:
        if self.byz_fraction == 0 or self.byzantine == 0:
            return False
        if self.turns == "code":
            after = arrival - self.nodes
            since = after if self.restart_every is None else after % self.restart_every
            return (since + 1) % math.ceil(1 / self.byz_fraction - 1e-9) == 0
        return self._liars(arrival + 1) > self._liars(arrival)

    def _liars(self, arrivals: int) -> int:
        """Return how many of the first arrivals, at least m, are Byzantine in faithful turns."""
        allowed = math.floor(self.byz_fraction * arrivals + 1e-9)  # 0.29 · 100 is 28.999…
        since = max(arrivals - self.nodes, 0)
        return max(self.byzantine, min(self.byzantine + since, allowed))
