"""What happens in a virtual federation: a discrete-event simulation that knows no Flower.

`World` is data that can be copied; the functions let time pass. What a message says and what an
app makes of it is `simulation`'s.
"""

import heapq
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flwr_byzasync.errors import ConfigError
from flwr_byzasync.simulation.federation import Duration, Scene

LEAST = 1e-3
"""Seconds that a reply takes at least: in no time at all, a liar could answer for ever."""
TICK = 1.0
"""Seconds of the virtual clock between two arrivals of an arrival process."""


@dataclass
class NodeWorld:
    """A node as it stands.

    Parameters
    ----------
    online, listed : bool
        Whether it works, and whether the network believes so.
    missed_at : float
        When a crashed node's heartbeat is missed.
    free_at : float
        When it has finished what it has fetched so far.
    messages : int
        Messages that it has been sent: numbers the draws of its times.
    life : int
        How often it has come back.
    states : dict
        What it remembers, by life: a reply that arrived before it left may be asked for later.
    """

    online: bool = True
    listed: bool = True
    missed_at: float = math.inf
    free_at: float = 0.0
    messages: int = 0
    life: int = 0
    states: dict[int, Any] = field(default_factory=dict)


@dataclass
class Flight:
    """A message that was sent and whose reply was not yet pulled.

    Parameters
    ----------
    query : object
        As it was sent; the reply is computed when it is delivered.
    node, number : int
        Partition-id, and which of that node's messages this is.
    expires : float
        When it is forgotten.
    fetched, arrives : float
        When the node begins and when the reply is there; infinite while nobody knows.
    life : int
        Of the node, when it began.
    lost : bool
        The node went away with it.
    reply : object
        Computed before its time, because a later message of the node was pulled first.
    """

    query: Any
    node: int
    number: int
    expires: float
    fetched: float = math.inf
    arrives: float = math.inf
    life: int = 0
    lost: bool = False
    reply: Any = None


@dataclass
class World:
    """All that changes while a `VirtualGrid` runs.

    Parameters
    ----------
    nodes : list of NodeWorld
        By partition-id.
    flights : dict
        By message id, in the order in which they were sent.
    events : list
        A heap of (time, order, what, partition-id).
    now : float
        Seconds of the virtual clock.
    sent, ticks, arrivals, order : int
        Messages sent, turns and arrivals of the arrival process, events scheduled.
    """

    nodes: list[NodeWorld]
    flights: dict[str, Flight] = field(default_factory=dict)
    events: list[tuple[float, int, str, int]] = field(default_factory=list)
    now: float = 0.0
    sent: int = 0
    ticks: int = 0
    arrivals: int = 0
    order: int = 0


def begin(scene: Scene) -> World:
    """Return the world at time 0: a node is absent if the first thing it does is to join."""
    world = World([NodeWorld() for _ in scene.nodes])
    first = {line.node: line.what for line in sorted(scene.churn, key=lambda x: x.at)[::-1]}
    for partition, what in first.items():
        node = world.nodes[partition]
        node.online = node.listed = what != "join"
    for line in scene.churn:
        _schedule(world, line.at, line.what, line.node)
    happen(world, scene, 0.0)
    return world


def send(
    world: World, scene: Scene, message_id: str, query: object, partition: int, ttl: float
) -> None:
    """Send a message to a node; one that is away finds it when it comes."""
    node = world.nodes[partition]
    flight = Flight(query, partition, node.messages, world.now + ttl)
    node.messages += 1
    world.flights[message_id] = flight
    if node.online:
        _fetch(world, scene, flight)


def next_event(world: World, scene: Scene) -> float:
    """Return when the next thing happens, or infinity."""
    times = [world.events[0][0]] if world.events else []
    if scene.arrivals is not None and _waiting(world):
        times.append((world.ticks + 1) * TICK)
    return max(min(times, default=math.inf), world.now)


def happen(world: World, scene: Scene, until: float) -> None:
    """Let everything happen up to a time, and make it the present."""
    while True:
        event = world.events[0][0] if world.events else math.inf
        tick = (world.ticks + 1) * TICK if scene.arrivals is not None else math.inf
        if min(event, tick) > until:
            break
        if event <= tick:
            world.now, _, what, partition = heapq.heappop(world.events)
            _come_or_go(world, scene, what, partition)
        else:
            world.now, world.ticks = tick, world.ticks + 1
            _let_one_arrive(world, scene)
    world.now = until


def unfinished(world: World, flight: Flight) -> list[Flight]:
    """Return the messages whose replies a node computes up to this one's: in turn, this one last.

    Those that it never fetched in time, or lost, are not among them.
    """
    return [
        other
        for other in world.flights.values()
        if (other.node, other.life) == (flight.node, flight.life)
        and other.number <= flight.number
        and other.fetched < min(other.expires, math.inf)
        and not other.lost
        and other.reply is None
    ]


def _fetch(world: World, scene: Scene, flight: Flight) -> None:
    """Hand a message to its node; without an arrival process its times are known then."""
    node, settings = world.nodes[flight.node], scene.nodes[flight.node]
    flight.life = node.life
    if scene.arrivals is not None:
        flight.fetched = world.now
        return
    rng = np.random.default_rng([scene.seed, flight.node, flight.number])
    names = ("network", "compute", "network")
    there, compute, back = (_seconds(name, getattr(settings, name), rng) for name in names)
    if settings.attack is not None:
        delay = settings.attack.delay(rng, compute)
        compute = _seconds("attack", max(compute + delay, 0.0) if delay == delay else delay, rng)
    fetched = max(world.now + there, node.free_at)
    if fetched >= flight.expires:  # the network has forgotten it by then
        return
    flight.fetched = fetched
    node.free_at = flight.fetched + compute
    flight.arrives = max(node.free_at + back, world.now + LEAST)
    _schedule(world, flight.arrives, "arrive", flight.node)


def _come_or_go(world: World, scene: Scene, what: str, partition: int) -> None:
    node = world.nodes[partition]
    mine = [flight for flight in world.flights.values() if flight.node == partition]
    if what == "join":
        node.online, node.listed, node.missed_at = True, True, math.inf
        node.free_at, node.life = world.now, node.life + 1
        asked_for = {flight.life for flight in mine if flight.arrives <= world.now}
        node.states = {life: kept for life, kept in node.states.items() if life in asked_for}
        for flight in mine:
            if flight.fetched == math.inf:
                _fetch(world, scene, flight)
    elif what == "missed":
        # A node that came back, and perhaps crashed again, is not missed for the first time's sake.
        node.listed = node.listed and world.now < node.missed_at
    elif what in ("leave", "crash"):
        for flight in mine:
            # What the node had not yet fetched waits for it at the network.
            if flight.fetched > world.now:
                flight.fetched = flight.arrives = math.inf
            elif flight.arrives > world.now:
                flight.lost = True
        node.online, node.listed = False, what == "crash"
        if what == "crash":
            node.missed_at = world.now + scene.heartbeat
            _schedule(world, node.missed_at, "missed", partition)


def _waiting(world: World) -> dict[int, Flight]:
    """Return the oldest message that each node works on, by partition-id."""
    oldest: dict[int, Flight] = {}
    for flight in world.flights.values():
        if flight.fetched < math.inf and flight.arrives == math.inf and not flight.lost:
            oldest.setdefault(flight.node, flight)
    return oldest


def _let_one_arrive(world: World, scene: Scene) -> None:
    waiting = _waiting(world)
    if waiting and scene.arrivals is not None:
        waiting[scene.arrivals.next(world.arrivals, tuple(waiting))].arrives = world.now
        world.arrivals += 1


def _schedule(world: World, at: float, what: str, partition: int) -> None:
    world.order += 1
    heapq.heappush(world.events, (at, world.order, what, partition))


def _seconds(name: str, duration: float | Duration, rng: np.random.Generator) -> float:
    seconds = float(duration(rng) if callable(duration) else duration)
    if not 0 <= seconds < math.inf:
        fix = "pass a distribution of finite, non-negative seconds"
        raise ConfigError(name, seconds, "finite and >= 0, whatever is drawn", fix)
    return seconds
