"""What each event makes of the state: ``(state, event) -> state``; no Flower, clock or randomness.

A rejected reply touches neither the tables nor the iterates, so they stay bit-identical by
construction.
"""

from collections.abc import Iterable
from dataclasses import replace
from statistics import median

from flwr_byzasync.core.protocol import advance, count_reason
from flwr_byzasync.core.quorum import all_quarantined, is_responsive, may_step, waits_for_nodes
from flwr_byzasync.core.state import InFlightQuery, Rejected, ServerState, Update
from flwr_byzasync.core.timing import (
    MIN_QUORUM_WAIT,
    TIMEOUT_FACTOR,
    next_query_time,
    time_limit,
)
from flwr_byzasync.core.transitions import Effect, Event, Status, move
from flwr_byzasync.errors import INFRASTRUCTURE_FAULTS, Reason
from flwr_byzasync.optimizers import divisor_of

REPLY_TIMES_KEPT = 15


def due_nodes(
    state: ServerState, connected: Iterable[int], now: float, at_once: bool = False
) -> list[int]:
    """Return the nodes to query now, in the order in which they joined.

    Parameters
    ----------
    state : ServerState
        While it `waits_for_nodes`, responsive nodes are not queried.
    connected : iterable of int
        Ids of the connected nodes.
    now : float
        Seconds of the clock.
    at_once : bool, default False
        Whether idle and lost nodes are queried before they are due, as where rounds set the
        pace. Quarantined nodes always wait.
    """
    here, waits = set(connected), waits_for_nodes(state)
    return [
        node_id
        for node_id, node in state.nodes.items()
        if node_id in here
        and node.status is not Status.QUERIED
        and (node.due <= now or (at_once and node.status is not Status.QUARANTINED))
        and not (waits and is_responsive(node, state.policy))
    ]


def on_sent(
    state: ServerState, node_id: int, message_id: str, query: int, now: float
) -> ServerState:
    """Record a query as in flight; it replaces an older one to the same node."""
    queries = {key: sent for key, sent in state.in_flight.items() if sent.node_id != node_id}
    node, payload = state.nodes[node_id], state.policy.payload
    queries[message_id] = InFlightQuery(
        node_id,
        query,
        state.iterates.step,
        sent_at=now,
        limit=time_limit(node, state.policy),
        point=state.iterates.x if payload.keeps_query_point else None,
        with_previous=node.previous_point is not None,
    )
    next_query_id = max(state.next_query_id, query + 1)
    state = replace(state, in_flight=queries, next_query_id=next_query_id)
    return advance(state, node_id, Event.READY)


def on_unsent(state: ServerState, node_id: int, now: float) -> ServerState:
    """Record that a query could not be handed to the network."""
    return advance(state, node_id, Event.UNSENT, Reason.UNSENT, now)


def on_reply(
    state: ServerState, message_id: str, reply: Update | Rejected, now: float
) -> ServerState:
    """Apply a reply: count it, aggregate and step, or count why not.

    Parameters
    ----------
    state : ServerState
        Before.
    message_id : str
        The message whose reply was pulled; the query in flight says which node's it is.
    reply : Update or Rejected
        The decoded reply.
    now : float
        Seconds of the clock.

    Returns
    -------
    ServerState
        After. If the reply was not accepted, `iterates`, `tables`, `buffers`, `counters` and
        `accepted` are the very same objects, unwritten.
    """
    sent = state.in_flight.get(message_id)
    if sent is None:
        return count_reason(state, Reason.UNSOLICITED)
    queries = {key: query for key, query in state.in_flight.items() if key != message_id}
    state = replace(state, in_flight=queries)
    if isinstance(reply, Update):
        return _accept(state, sent, reply, now)
    faults = state.nodes[sent.node_id].faults + 1
    too_many = faults >= state.policy.liveness.max_consecutive_faults
    last = reply.reason not in INFRASTRUCTURE_FAULTS and too_many
    event = Event.LAST_FAULT if last else Event.FAULT
    return advance(state, sent.node_id, event, reply.reason, now)


def on_clock(state: ServerState, now: float) -> ServerState:
    """Lose the nodes whose query is older than its time limit; a late reply still counts.

    Before the first step, initial nodes that are far slower than the rest are no longer waited
    for.
    """
    if state.quorum_pending and state.policy.quorum.nodes is None:
        # Never all of them: an empty set means that the first step was made.
        left = state.quorum_pending - _too_slow(state, now)
        state = replace(state, quorum_pending=left or state.quorum_pending)
    for message_id, sent in state.in_flight.items():
        if not sent.overdue and now - sent.sent_at > sent.limit:
            overdue = replace(sent, overdue=True)
            state = replace(state, in_flight={**state.in_flight, message_id: overdue})
            state = advance(state, sent.node_id, Event.SILENT, Reason.EXPIRED, now)
    return state


def on_clock_paused(state: ServerState, seconds: float) -> ServerState:
    """Credit every query with the seconds in which the server did not poll."""
    queries = {
        key: replace(query, sent_at=query.sent_at + seconds, paused_for=query.paused_for + seconds)
        for key, query in state.in_flight.items()
    }
    return replace(state, in_flight=queries)


def on_all_quarantined(state: ServerState, now: float) -> ServerState:
    """While every node is quarantined, query each again after `reply_timeout` at the latest.

    What quarantines all of them is not a Byzantine node, and waits that double would outlast
    the run.
    """
    latest = now + state.policy.liveness.reply_timeout
    return _due_by(state, latest) if all_quarantined(state) else state


def on_end(state: ServerState, now: float) -> ServerState:
    """When a run ends early, make quarantined nodes due at once for when it resumes."""
    return _due_by(state, now)


def _due_by(state: ServerState, latest: float) -> ServerState:
    late = {
        node_id: replace(node, due=latest)
        for node_id, node in state.nodes.items()
        if node.status is Status.QUARANTINED and node.due > latest
    }
    return replace(state, nodes={**state.nodes, **late}) if late else state


def _accept(state: ServerState, sent: InFlightQuery, update: Update, now: float) -> ServerState:
    node = state.nodes[sent.node_id]
    status, effects = move(node.status, Event.UPDATE)
    if Effect.ACCEPT not in effects:
        return state
    count, step = node.accepted + 1, state.iterates.step
    row = len(state.tables.parameters) if node.row is None else node.row
    state.tables.replace(row, update, count, sent.step, step)
    accepted = replace(
        node,
        row=row,
        status=status,
        accepted=count,
        replies_in_row=1 if node.row is None else node.replies_in_row + 1,
        faults=0,
        silences=0,
        quarantines=0,
        reply_times=_with_reply_time(node.reply_times, sent, now),
        metrics=update.metrics,
        point=sent.point if state.policy.payload.keeps_previous_point else None,
    )
    state = replace(
        state,
        nodes={**state.nodes, sent.node_id: accepted},
        accepted=state.accepted + 1,
        staleness=state.staleness + step - sent.step,
    )
    accepted = replace(accepted, due=next_query_time(state, sent.sent_at, now))
    state = replace(state, nodes={**state.nodes, sent.node_id: accepted})
    return _step(state) if may_step(state) else state


def _with_reply_time(
    times: tuple[float, ...], sent: InFlightQuery, now: float
) -> tuple[float, ...]:
    """Append how long a reply took, unless it may have been waiting while nobody polled."""
    took = now - sent.sent_at
    return (*times, took)[-REPLY_TIMES_KEPT:] if sent.paused_for <= took else times


def _step(state: ServerState) -> ServerState:
    tables, layout = state.tables, state.layout
    share = state.policy.payload.delay_compensation
    direction = tables.parameters.direction(share * state.iterates.x if share else None)
    divisor = divisor_of(state.optimizer, len(tables.parameters))
    if divisor != 1:
        direction = direction / divisor
    return replace(
        state,
        quorum_pending=frozenset(),
        iterates=state.optimizer.step(state.iterates, direction),
        buffers=tables.buffers.direction() if layout.buffers.size else state.buffers,
        counters=tables.counters.direction() if layout.counters.size else state.counters,
    )


def _too_slow(state: ServerState, now: float) -> frozenset[int]:
    """Return initial nodes without a reply although a majority replied in a tenth of the time."""
    first = [node.reply_times[0] for node in state.nodes.values() if node.reply_times]
    if 2 * len(first) <= len(state.initial_nodes):
        return frozenset()
    limit = max(MIN_QUORUM_WAIT, TIMEOUT_FACTOR * median(first))
    late = {query.node_id for query in state.in_flight.values() if now - query.sent_at > limit}
    return frozenset(node_id for node_id in late if state.nodes[node_id].row is None)
