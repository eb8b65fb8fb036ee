"""The discrete-event simulation behind `VirtualGrid`; it knows nothing of Flower.

`EngineState` is data that can be copied; the functions advance its time. What a message contains,
and what an app makes of it, is the grid's business.
"""

import heapq
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flwr_byzasync.errors import ConfigError
from flwr_byzasync.simulation.federation import Duration, Scenario

MIN_REPLY_SECONDS = 1e-3
"""With zero latency a Byzantine node could reply endlessly at one instant."""
SECONDS_PER_ARRIVAL = 1.0
"""Seconds of the virtual clock between two arrivals of an arrival process."""


@dataclass
class SimulatedNode:
    """The present state of a node.

    Parameters
    ----------
    online, registered : bool
        Whether it is running, and whether the network believes so.
    heartbeat_deadline : float
        When the network notices that a crashed node is gone.
    free_at : float
        When it finishes the messages that it has fetched so far.
    messages : int
        Messages sent to it so far; they number the draws of its times.
    incarnation : int
        How often it has rejoined.
    states : dict
        Its ``Context.state`` by incarnation: a reply that arrived before it left may be pulled
        later.
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
    """A message whose reply has not been pulled yet.

    Parameters
    ----------
    query : object
        As sent; the reply is computed when it is delivered.
    node, number : int
        Partition-id, and the message's number among that node's.
    expires : float
        When the network forgets it.
    fetched, arrives : float
        When the node starts and when the reply arrives; infinite while unknown.
    incarnation : int
        Of the node, when it started.
    lost : bool
        Whether the node left with it.
    reply : object
        Computed early because a later message of the node was pulled first.
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
    """Everything that changes while a `VirtualGrid` runs.

    Parameters
    ----------
    nodes : list of SimulatedNode
        By partition-id.
    deliveries : dict
        By message id, in the order in which they were sent.
    events : list
        A heap of (time, order, kind, partition-id).
    now : float
        Seconds of the virtual clock.
    sent, ticks, arrivals, order : int
        Messages sent, ticks and arrivals of the arrival process, events scheduled.
    """

    nodes: list[SimulatedNode]
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    events: list[tuple[float, int, str, int]] = field(default_factory=list)
    now: float = 0.0
    sent: int = 0
    ticks: int = 0
    arrivals: int = 0
    order: int = 0


def initial_engine_state(scenario: Scenario) -> EngineState:
    """Return the state at time 0: a node whose first event is to join is absent."""
    state = EngineState([SimulatedNode() for _ in scenario.nodes])
    in_order = sorted(scenario.churn, key=lambda change: change.at)
    first = {change.node: change.kind for change in in_order[::-1]}
    for partition, kind in first.items():
        node = state.nodes[partition]
        node.online = node.registered = kind != "join"
    for change in scenario.churn:
        _schedule(state, change.at, change.kind, change.node)
    advance_to(state, scenario, 0.0)
    return state


def send(
    state: EngineState,
    scenario: Scenario,
    message_id: str,
    query: object,
    partition: int,
    ttl: float,
) -> None:
    """Send a message to a node; an absent node fetches it when it joins."""
    node = state.nodes[partition]
    delivery = Delivery(query, partition, node.messages, state.now + ttl)
    node.messages += 1
    state.deliveries[message_id] = delivery
    if node.online:
        _fetch(state, scenario, delivery)


def next_event(state: EngineState, scenario: Scenario) -> float:
    """Return the time of the next event, or infinity."""
    times = [state.events[0][0]] if state.events else []
    if scenario.arrivals is not None and _waiting(state):
        times.append((state.ticks + 1) * SECONDS_PER_ARRIVAL)
    return max(min(times, default=math.inf), state.now)


def advance_to(state: EngineState, scenario: Scenario, until: float) -> None:
    """Process all events up to a time, and make it the present."""
    while True:
        event = state.events[0][0] if state.events else math.inf
        tick = (
            (state.ticks + 1) * SECONDS_PER_ARRIVAL if scenario.arrivals is not None else math.inf
        )
        if min(event, tick) > until:
            break
        if event <= tick:
            state.now, _, kind, partition = heapq.heappop(state.events)
            _change_membership(state, scenario, kind, partition)
        else:
            state.now, state.ticks = tick, state.ticks + 1
            _deliver_one(state, scenario)
    state.now = until


def pending_before(state: EngineState, delivery: Delivery) -> list[Delivery]:
    """Return the messages whose replies a node computes first, in order, and this one last.

    Messages that it never fetched in time, or lost, are not among them.
    """
    return [
        other
        for other in state.deliveries.values()
        if (other.node, other.incarnation) == (delivery.node, delivery.incarnation)
        and other.number <= delivery.number
        and other.fetched < min(other.expires, math.inf)
        and not other.lost
        and other.reply is None
    ]


def _fetch(state: EngineState, scenario: Scenario, delivery: Delivery) -> None:
    """Hand a message to its node; without an arrival process this fixes its times."""
    node, settings = state.nodes[delivery.node], scenario.nodes[delivery.node]
    delivery.incarnation = node.incarnation
    if scenario.arrivals is not None:
        delivery.fetched = state.now
        return
    rng = np.random.default_rng([scenario.seed, delivery.node, delivery.number])
    names = ("network", "compute", "network")
    there, compute, back = (_seconds(name, getattr(settings, name), rng) for name in names)
    if settings.attack is not None:
        delay = settings.attack.delay(rng, compute)
        compute = _seconds("attack", max(compute + delay, 0.0) if delay == delay else delay, rng)
    fetched = max(state.now + there, node.free_at)
    if fetched >= delivery.expires:  # the network forgets it before that
        return
    delivery.fetched = fetched
    node.free_at = delivery.fetched + compute
    delivery.arrives = max(node.free_at + back, state.now + MIN_REPLY_SECONDS)
    _schedule(state, delivery.arrives, "arrive", delivery.node)


def _change_membership(state: EngineState, scenario: Scenario, kind: str, partition: int) -> None:
    node = state.nodes[partition]
    mine = [delivery for delivery in state.deliveries.values() if delivery.node == partition]
    if kind == "join":
        node.online, node.registered, node.heartbeat_deadline = True, True, math.inf
        node.free_at, node.incarnation = state.now, node.incarnation + 1
        pullable = {delivery.incarnation for delivery in mine if delivery.arrives <= state.now}
        node.states = {
            incarnation: kept
            for incarnation, kept in node.states.items()
            if incarnation in pullable
        }
        for delivery in mine:
            if delivery.fetched == math.inf:
                _fetch(state, scenario, delivery)
    elif kind == "missed":
        # A node that rejoined, and perhaps crashed again, is not missed for its first crash.
        node.registered = node.registered and state.now < node.heartbeat_deadline
    elif kind in ("leave", "crash"):
        for delivery in mine:
            # Messages that the node has not fetched wait for it at the network.
            if delivery.fetched > state.now:
                delivery.fetched = delivery.arrives = math.inf
            elif delivery.arrives > state.now:
                delivery.lost = True
        node.online, node.registered = False, kind == "crash"
        if kind == "crash":
            node.heartbeat_deadline = state.now + scenario.heartbeat
            _schedule(state, node.heartbeat_deadline, "missed", partition)


def _waiting(state: EngineState) -> dict[int, Delivery]:
    """Return the oldest message that each node is working on, by partition-id."""
    oldest: dict[int, Delivery] = {}
    for delivery in state.deliveries.values():
        if delivery.fetched < math.inf and delivery.arrives == math.inf and not delivery.lost:
            oldest.setdefault(delivery.node, delivery)
    return oldest


def _deliver_one(state: EngineState, scenario: Scenario) -> None:
    waiting = _waiting(state)
    if waiting and scenario.arrivals is not None:
        waiting[scenario.arrivals.next(state.arrivals, tuple(waiting))].arrives = state.now
        state.arrivals += 1


def _schedule(state: EngineState, at: float, kind: str, partition: int) -> None:
    state.order += 1
    heapq.heappush(state.events, (at, state.order, kind, partition))


def _seconds(name: str, duration: float | Duration, rng: np.random.Generator) -> float:
    seconds = float(duration(rng) if callable(duration) else duration)
    if not 0 <= seconds < math.inf:
        fix = "pass a distribution of finite, non-negative seconds"
        raise ConfigError(name, seconds, "finite and >= 0, whatever is drawn", fix)
    return seconds
