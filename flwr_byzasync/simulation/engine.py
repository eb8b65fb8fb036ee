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
from flwr_byzasync.simulation.federation import Duration, Scenario

MIN_REPLY_SECONDS = 1e-3
"""Seconds that a reply takes at least: in no time at all, a liar could answer for ever."""
SECONDS_PER_ARRIVAL = 1.0
"""Seconds of the virtual clock between two arrivals of an arrival process."""


@dataclass
class SimulatedNode:
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
    registered: bool = True
    heartbeat_deadline: float = math.inf
    free_at: float = 0.0
    messages: int = 0
    incarnation: int = 0
    states: dict[int, Any] = field(default_factory=dict)


@dataclass
class Delivery:
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
    incarnation: int = 0
    lost: bool = False
    reply: Any = None


@dataclass
class EngineState:
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

    nodes: list[SimulatedNode]
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    events: list[tuple[float, int, str, int]] = field(default_factory=list)
    now: float = 0.0
    sent: int = 0
    ticks: int = 0
    arrivals: int = 0
    order: int = 0


def initial_engine_state(scene: Scenario) -> EngineState:
    """Return the world at time 0: a node is absent if the first thing it does is to join."""
    world = EngineState([SimulatedNode() for _ in scene.nodes])
    first = {line.node: line.kind for line in sorted(scene.churn, key=lambda x: x.at)[::-1]}
    for partition, what in first.items():
        node = world.nodes[partition]
        node.online = node.registered = what != "join"
    for line in scene.churn:
        _schedule(world, line.at, line.kind, line.node)
    advance_to(world, scene, 0.0)
    return world


def send(
    world: EngineState, scene: Scenario, message_id: str, query: object, partition: int, ttl: float
) -> None:
    """Send a message to a node; one that is away finds it when it comes."""
    node = world.nodes[partition]
    flight = Delivery(query, partition, node.messages, world.now + ttl)
    node.messages += 1
    world.deliveries[message_id] = flight
    if node.online:
        _fetch(world, scene, flight)


def next_event(world: EngineState, scene: Scenario) -> float:
    """Return when the next thing happens, or infinity."""
    times = [world.events[0][0]] if world.events else []
    if scene.arrivals is not None and _waiting(world):
        times.append((world.ticks + 1) * SECONDS_PER_ARRIVAL)
    return max(min(times, default=math.inf), world.now)


def advance_to(world: EngineState, scene: Scenario, until: float) -> None:
    """Let everything happen up to a time, and make it the present."""
    while True:
        event = world.events[0][0] if world.events else math.inf
        tick = (world.ticks + 1) * SECONDS_PER_ARRIVAL if scene.arrivals is not None else math.inf
        if min(event, tick) > until:
            break
        if event <= tick:
            world.now, _, what, partition = heapq.heappop(world.events)
            _come_or_go(world, scene, what, partition)
        else:
            world.now, world.ticks = tick, world.ticks + 1
            _let_one_arrive(world, scene)
    world.now = until


def pending_before(world: EngineState, flight: Delivery) -> list[Delivery]:
    """Return the messages whose replies a node computes up to this one's: in turn, this one last.

    Those that it never fetched in time, or lost, are not among them.
    """
    return [
        other
        for other in world.deliveries.values()
        if (other.node, other.incarnation) == (flight.node, flight.incarnation)
        and other.number <= flight.number
        and other.fetched < min(other.expires, math.inf)
        and not other.lost
        and other.reply is None
    ]


def _fetch(world: EngineState, scene: Scenario, flight: Delivery) -> None:
    """Hand a message to its node; without an arrival process its times are known then."""
    node, settings = world.nodes[flight.node], scene.nodes[flight.node]
    flight.incarnation = node.incarnation
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
    flight.arrives = max(node.free_at + back, world.now + MIN_REPLY_SECONDS)
    _schedule(world, flight.arrives, "arrive", flight.node)


def _come_or_go(world: EngineState, scene: Scenario, what: str, partition: int) -> None:
    node = world.nodes[partition]
    mine = [flight for flight in world.deliveries.values() if flight.node == partition]
    if what == "join":
        node.online, node.registered, node.heartbeat_deadline = True, True, math.inf
        node.free_at, node.incarnation = world.now, node.incarnation + 1
        asked_for = {flight.incarnation for flight in mine if flight.arrives <= world.now}
        node.states = {life: kept for life, kept in node.states.items() if life in asked_for}
        for flight in mine:
            if flight.fetched == math.inf:
                _fetch(world, scene, flight)
    elif what == "missed":
        # A node that came back, and perhaps crashed again, is not missed for the first time's sake.
        node.registered = node.registered and world.now < node.heartbeat_deadline
    elif what in ("leave", "crash"):
        for flight in mine:
            # What the node had not yet fetched waits for it at the network.
            if flight.fetched > world.now:
                flight.fetched = flight.arrives = math.inf
            elif flight.arrives > world.now:
                flight.lost = True
        node.online, node.registered = False, what == "crash"
        if what == "crash":
            node.heartbeat_deadline = world.now + scene.heartbeat
            _schedule(world, node.heartbeat_deadline, "missed", partition)


def _waiting(world: EngineState) -> dict[int, Delivery]:
    """Return the oldest message that each node works on, by partition-id."""
    oldest: dict[int, Delivery] = {}
    for flight in world.deliveries.values():
        if flight.fetched < math.inf and flight.arrives == math.inf and not flight.lost:
            oldest.setdefault(flight.node, flight)
    return oldest


def _let_one_arrive(world: EngineState, scene: Scenario) -> None:
    waiting = _waiting(world)
    if waiting and scene.arrivals is not None:
        waiting[scene.arrivals.next(world.arrivals, tuple(waiting))].arrives = world.now
        world.arrivals += 1


def _schedule(world: EngineState, at: float, what: str, partition: int) -> None:
    world.order += 1
    heapq.heappush(world.events, (at, world.order, what, partition))


def _seconds(name: str, duration: float | Duration, rng: np.random.Generator) -> float:
    seconds = float(duration(rng) if callable(duration) else duration)
    if not 0 <= seconds < math.inf:
        fix = "pass a distribution of finite, non-negative seconds"
        raise ConfigError(name, seconds, "finite and >= 0, whatever is drawn", fix)
    return seconds
