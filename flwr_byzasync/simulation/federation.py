"""A virtual federation: its nodes, their times, and which of them join, leave and crash."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from flwr_byzasync._checks import check_choice, check_integer, check_number
from flwr_byzasync.attacks import TimedAttack
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.simulation.arrivals import ArrivalProcess

Duration = Callable[[np.random.Generator], float]
"""A distribution of seconds, drawn from NumPy's generator: ``lambda rng: rng.exponential(2.0)``."""

EVENTS = ("join", "leave", "crash")


@dataclass(frozen=True)
class VirtualNode:
    """How fast a node is, and its attack on time.

    Parameters
    ----------
    compute : float or callable, default 1.0
        Seconds to compute a reply, or their distribution as a function of a
        `numpy.random.Generator`; >= 0.
    network : float or callable, default 0.0
        Seconds that a message takes each way; likewise. A reply takes at least a millisecond.
    attack : TimedAttack, optional
        An attack on time, whose delay is added to the computing time.
    node_config : mapping
        Further node-config keys, besides ``partition-id`` and ``num-partitions``.

    Raises
    ------
    ConfigError
        If a time is negative or the attack has no delay.

    Examples
    --------
    >>> slow = VirtualNode(compute=lambda rng: rng.lognormal(mean=2.0, sigma=0.5), network=0.1)
    """

    compute: float | Duration = 1.0
    network: float | Duration = 0.0
    attack: TimedAttack | None = None
    node_config: Mapping[str, bool | float | int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("compute", "network"):
            value = getattr(self, name)
            if not callable(value):
                fix = "pass seconds, or a function of numpy's Generator"
                check_number(name, value, low=0, fix=fix)
        if self.attack is not None and not isinstance(self.attack, TimedAttack):
            fix = "leave it out, or pass for example SlowDown()"
            raise ConfigError("attack", self.attack, "an attack with a method delay", fix)
        if not isinstance(self.node_config, Mapping):
            fix = "pass for example {'data': 'north'}"
            raise ConfigError("node_config", self.node_config, "a mapping of names", fix)


@dataclass(frozen=True)
class Churn:
    """One change of which nodes are connected.

    Parameters
    ----------
    at : float
        Seconds of the virtual clock, >= 0.
    node : int
        Partition-id.
    kind : {"join", "leave", "crash"}
        "join": connects, for the first time or again, under its old id and with an empty
        ``Context.state``; a node whose first change is this one is absent until then. "leave":
        disconnects. "crash": stops, which the network notices after `heartbeat` seconds.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    at: float
    node: int
    kind: Literal["join", "leave", "crash"]

    def __post_init__(self) -> None:
        check_number("at", self.at, low=0, fix="pass seconds of the virtual clock")
        check_integer("node", self.node, low=0, fix="pass a partition-id")
        check_choice("kind", self.kind, EVENTS, fix="pass for example 'leave'")


@dataclass(frozen=True)
class Scenario:
    """Everything that is fixed while a `VirtualGrid` runs.

    Parameters
    ----------
    nodes : sequence of VirtualNode
        By partition-id.
    seed : int
        Of the draws of times.
    arrivals : ArrivalProcess or None
        Chooses whose reply arrives next; None: the nodes' times decide.
    churn : sequence of Churn
        Which nodes join, leave and crash.
    heartbeat : float
        Seconds after which the network notices a crash.

    Raises
    ------
    ConfigError
        If a setting is out of range, the changes impossible, or nodes have times of their own or
        attack by delays although an arrival process decides.
    """

    nodes: Sequence[VirtualNode]
    seed: int
    arrivals: ArrivalProcess | None
    churn: Sequence[Churn]
    heartbeat: float

    def __post_init__(self) -> None:
        if not self.nodes or not all(isinstance(node, VirtualNode) for node in self.nodes):
            raise ConfigError("nodes", self.nodes, "VirtualNodes, at least one", "pass a count")
        check_integer("seed", self.seed, low=0, fix="pass for example seed=1")
        check_number("heartbeat", self.heartbeat, low=0, closed="neither", fix="pass seconds")
        _check_script(self.churn, len(self.nodes))
        if self.arrivals is not None:
            _check_timeless(self.arrivals, self.nodes)


def _check_script(churn: Sequence[Churn], nodes: int) -> None:
    """Make sure that only absent nodes join and only present ones leave or crash.

    Raises
    ------
    ConfigError
        Naming the first change that cannot happen.
    """
    present: dict[int, bool] = {}
    for change in sorted(churn, key=lambda change: change.at):
        if change.node >= nodes:
            legal = f"about nodes 0 .. {nodes - 1}"
            raise ConfigError("churn", change, legal, "correct the node, or add nodes")
        joins = change.kind == "join"
        if present.get(change.node, not joins) == joins:
            state = "present" if joins else "absent"
            raise ConfigError("churn", change, f"possible: the node is {state} then", "remove it")
        present[change.node] = joins


def _check_timeless(arrivals: ArrivalProcess, nodes: Sequence[VirtualNode]) -> None:
    if not isinstance(arrivals, ArrivalProcess):
        fix = "pass for example PaperArrivals(nodes=17, byzantine=8, byz_fraction=0.4)"
        raise ConfigError("arrivals", arrivals, "an object with a method next", fix)
    expected = getattr(arrivals, "nodes", len(nodes))
    if expected != len(nodes):
        fix = "give both the same number of nodes"
        raise ConfigError("arrivals", arrivals, f"for {len(nodes)} nodes", fix)
    plain = VirtualNode()
    for node in nodes:
        if node.attack is not None:
            legal = "None where an arrival process decides: a delay would change nothing"
            raise ConfigError("attack", node.attack, legal, "leave out arrivals or the attack")
        if (node.compute, node.network) != (plain.compute, plain.network):
            legal = "without times of their own where an arrival process decides"
            raise ConfigError("nodes", node, legal, "leave out arrivals or the times")
