"""What each event makes of the state: ``(state, event) -> state``; no Flower, clock or randomness.

A reply that is not accepted touches neither the table nor the iterates, so that they stay
bit-identical by construction.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from statistics import median

from flwr_byzasync.checkpoints.codec import types_of
from flwr_byzasync.core.quorum import all_shut, answers, may_step, paused
from flwr_byzasync.core.state import Node, Rejected, Sent, ServerState, Tables, Update
from flwr_byzasync.core.timing import LEAST_PATIENCE, PATIENCE, earliest, failed, time_limit
from flwr_byzasync.core.transitions import TRANSITIONS, Effect, Event, Status, move
from flwr_byzasync.errors import INFRASTRUCTURE_FAULTS, Reason
from flwr_byzasync.optimizers import divisor_of

REPLY_TIMES_KEPT = 15
MOST_ABSENT = 1000
"""Nodes that left without a row and are remembered: whoever comes again under ever new ids fills
no memory, and a node that comes back soon does not find its faults forgiven."""


def on_connected(state: ServerState, connected: Iterable[int]) -> ServerState:
    """Take note of who is connected: new nodes join, missing ones are gone.

    The nodes of the first call are the founders that `quorum` waits for.
    """
    here = dict.fromkeys(connected)
    nodes = dict(state.nodes)
    for node_id in here:
        nodes.setdefault(node_id, Node())
    if len(nodes) > len(state.nodes):
        founders = state.founders or frozenset(here)
        awaited = state.awaited if state.founders else founders
        state = replace(state, nodes=nodes, founders=founders, awaited=awaited)
    for node_id, node in nodes.items():
        if node_id not in here and (node.status, Event.GONE) in TRANSITIONS:
            state = _advance(state, node_id, Event.GONE, Reason.NODE_GONE)
    return _without_strangers(state, here)


def due_nodes(
    state: ServerState, connected: Iterable[int], now: float, at_once: bool = False
) -> list[int]:
    """Return the nodes to be asked now, in the order in which they joined.

    Parameters
    ----------
    state : ServerState
        While it is `paused`, nodes that answer are left alone.
    connected : iterable of int
        Who is there.
    now : float
        Seconds of the clock.
    at_once : bool, default False
        Whether idle and lost nodes need not wait until they are due, as where rounds set the
        pace. A node that is shut always does.
    """
    here, waits = set(connected), paused(state)
    return [
        node_id
        for node_id, node in state.nodes.items()
        if node_id in here
        and node.status is not Status.ASKED
        and (node.due <= now or (at_once and node.status is not Status.SHUT))
        and not (waits and answers(node, state.policy))
    ]


def on_sent(
    state: ServerState, node_id: int, message_id: str, query: int, now: float
) -> ServerState:
    """Enter a message in the book; an older one of the same node is struck out."""
    book = {key: line for key, line in state.book.items() if line.node_id != node_id}
    node, before = state.nodes[node_id], state.nodes[node_id].before is not None
    limit = time_limit(node, state.policy)
    point = state.iterates.x if state.policy.reading.keeps_sent else None
    step = state.iterates.step
    book[message_id] = Sent(node_id, query, step, now, limit, point=point, before=before)
    state = replace(state, book=book, queries=max(state.queries, query + 1))
    return _advance(state, node_id, Event.READY)


def on_unsent(state: ServerState, node_id: int, now: float) -> ServerState:
    """Take note of a query that could not be handed to the network."""
    return _advance(state, node_id, Event.UNSENT, Reason.UNSENT, now)


def on_reply(
    state: ServerState, message_id: str, reply: Update | Rejected, now: float
) -> ServerState:
    """Take a reply in: count it, aggregate and step, or count why not.

    Parameters
    ----------
    state : ServerState
        Before.
    message_id : str
        The message whose reply was asked for; whose it is, the book says.
    reply : Update or Rejected
        What was decoded.
    now : float
        Seconds of the clock.

    Returns
    -------
    ServerState
        After. If the reply was not accepted, `iterates`, `tables`, `buffers`, `counters` and
        `accepted` are the very same objects, unwritten.
    """
    sent = state.book.get(message_id)
    if sent is None:
        return _count(state, Reason.UNSOLICITED)
    book = {key: line for key, line in state.book.items() if key != message_id}
    state = replace(state, book=book)
    if isinstance(reply, Update):
        return _accept(state, sent, reply, now)
    faults = state.nodes[sent.node_id].faults + 1
    last = reply.reason not in INFRASTRUCTURE_FAULTS and faults >= state.policy.shut_after
    event = Event.LAST_FAULT if last else Event.FAULT
    return _advance(state, sent.node_id, event, reply.reason, now)


def on_clock(state: ServerState, now: float) -> ServerState:
    """Lose the nodes whose message is older than its time limit; a late reply still counts.

    Before the first step, founders that are far slower than the rest are no longer waited for.
    """
    if state.awaited and state.policy.min_nodes is None:
        # Not all of them: what nobody is waited for needs no quorum either.
        left = state.awaited - _too_slow(state, now)
        state = replace(state, awaited=left or state.awaited)
    for message_id, sent in state.book.items():
        if not sent.overdue and now - sent.sent_at > sent.limit:
            state = replace(state, book={**state.book, message_id: replace(sent, overdue=True)})
            state = _advance(state, sent.node_id, Event.SILENT, Reason.EXPIRED, now)
    return state


def on_standstill(state: ServerState, seconds: float) -> ServerState:
    """Take note that the server did not listen for a while: no message is late for that."""
    book = {
        key: replace(line, sent_at=line.sent_at + seconds, held=line.held + seconds)
        for key, line in state.book.items()
    }
    return replace(state, book=book)


def on_all_shut(state: ServerState, now: float) -> ServerState:
    """Ask nodes again after `reply_timeout` at the latest while every one of them is shut.

    What shut them all is no liar, and waits that double would outlast the run's patience.
    """
    latest = now + state.policy.reply_timeout
    return _due_by(state, latest) if all_shut(state) else state


def on_end(state: ServerState, now: float) -> ServerState:
    """Have a run that ends early ask whoever is shut as soon as it is gone on with."""
    return _due_by(state, now)


def _due_by(state: ServerState, latest: float) -> ServerState:
    late = {
        node_id: replace(node, due=latest)
        for node_id, node in state.nodes.items()
        if node.status is Status.SHUT and node.due > latest
    }
    return replace(state, nodes={**state.nodes, **late}) if late else state


def _accept(state: ServerState, sent: Sent, update: Update, now: float) -> ServerState:
    node = state.nodes[sent.node_id]
    status, effects = move(node.status, Event.UPDATE)
    if Effect.ACCEPT not in effects:
        return state
    tables, count, step = state.tables, node.accepted + 1, state.iterates.step
    row = len(tables.parameters) if node.row is None else node.row
    tables.parameters.replace(row, update.vector, count, sent.step, step)
    tables.buffers.replace(row, update.buffers, count, sent.step, step)
    tables.counters.replace(row, update.counters, count, sent.step, step)
    times, took = node.reply_times, now - sent.sent_at
    if sent.held <= took:  # else it may have been there for long, and says little of its pace
        times = (*times, took)[-REPLY_TIMES_KEPT:]
    nodes = dict(state.nodes)
    nodes[sent.node_id] = replace(
        node,
        row=row,
        status=status,
        accepted=count,
        begun=1 if node.row is None else node.begun + 1,
        faults=0,
        silences=0,
        shuts=0,
        reply_times=times,
        metrics=update.metrics,
        point=sent.point if state.policy.reading.keeps_answered else None,
    )
    staleness = state.staleness + step - sent.step
    state = replace(state, nodes=nodes, accepted=state.accepted + 1, staleness=staleness)
    due = earliest(state, sent.sent_at, now)
    state = replace(state, nodes={**nodes, sent.node_id: replace(nodes[sent.node_id], due=due)})
    return _step(state) if may_step(state) else state


def _step(state: ServerState) -> ServerState:
    tables, layout = state.tables, state.layout
    share = state.policy.reading.delay_compensation
    direction = tables.parameters.direction(share * state.iterates.x if share else None)
    divisor = divisor_of(state.optimizer, len(tables.parameters))
    if divisor != 1:
        direction = direction / divisor
    return replace(
        state,
        awaited=frozenset(),
        iterates=state.optimizer.step(state.iterates, direction),
        buffers=tables.buffers.direction() if layout.buffers.size else state.buffers,
        counters=tables.counters.direction() if layout.counters.size else state.counters,
    )


def _advance(
    state: ServerState, node_id: int, event: Event, reason: Reason | None = None, now: float = 0.0
) -> ServerState:
    """Carry out a row of the transition table other than an acceptance."""
    node = state.nodes[node_id]
    status, effects = move(node.status, event)
    if Effect.BACK_OFF in effects:
        node = failed(node, event, reason, state.policy, now)
    state = replace(state, nodes={**state.nodes, node_id: replace(node, status=status)})
    if Effect.COUNT in effects and reason is not None:
        state = _count(state, reason)
    drops = Effect.RETIRE in effects and state.policy.lost_rows == "drop"
    return _drop_row(state, node.row) if drops and node.row is not None else state


def _drop_row(state: ServerState, row: int) -> ServerState:
    """Forget a row; the rows after it move up."""
    tables = state.tables
    for table in (tables.parameters, tables.buffers, tables.counters):
        table.drop(row, state.iterates.step)
    nodes = dict(state.nodes)
    for node_id, node in state.nodes.items():
        if node.row is not None and node.row >= row:
            nodes[node_id] = replace(node, row=None if node.row == row else node.row - 1)
    return replace(state, nodes=nodes)


def _too_slow(state: ServerState, now: float) -> frozenset[int]:
    """Founders that have not replied although others did in a small part of the time."""
    first = [node.reply_times[0] for node in state.nodes.values() if node.reply_times]
    if 2 * len(first) <= len(state.founders):
        return frozenset()
    limit = max(LEAST_PATIENCE, PATIENCE * median(first))
    late = {line.node_id for line in state.book.values() if now - line.sent_at > limit}
    return frozenset(node_id for node_id in late if state.nodes[node_id].row is None)


def _without_strangers(state: ServerState, here: Collection[int]) -> ServerState:
    """Forget the first of the nodes that left and have no row, once there are too many."""
    if len(state.nodes) - len(here) <= MOST_ABSENT:
        return state
    absent = [
        node_id
        for node_id, node in state.nodes.items()
        if node.row is None and node_id not in here and node_id not in state.awaited
    ]
    strangers = set(absent[: max(0, len(absent) - MOST_ABSENT)])
    nodes = {node_id: node for node_id, node in state.nodes.items() if node_id not in strangers}
    book = {key: line for key, line in state.book.items() if line.node_id not in strangers}
    return replace(state, nodes=nodes, book=book)


def _count(state: ServerState, reason: Reason) -> ServerState:
    return replace(state, reasons={**state.reasons, reason: state.reasons.get(reason, 0) + 1})


def without_absent(state: ServerState, here: Collection[int]) -> ServerState:
    """Return the state of a run that goes on among other nodes.

    Nodes that are not there are forgotten with their rows: in a new run every node has a new id,
    and would count twice. Those that are there are the founders for which the next step waits.
    """
    kept = {node_id: node for node_id, node in state.nodes.items() if node_id in here}
    rows = sorted(node.row for node in kept.values() if node.row is not None)
    for index in reversed(range(len(state.tables.parameters))):
        if index not in rows:
            for name in types_of(Tables):
                getattr(state.tables, name).drop(index, state.iterates.step)
    nodes = {
        node_id: node if node.row is None else replace(node, row=rows.index(node.row))
        for node_id, node in kept.items()
    }
    nodes |= {node_id: Node() for node_id in here if node_id not in nodes}
    book = {key: line for key, line in state.book.items() if line.node_id in nodes}
    founders = frozenset(here)
    return replace(state, nodes=nodes, book=book, founders=founders, awaited=founders)
