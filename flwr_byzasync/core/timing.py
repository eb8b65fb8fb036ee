"""How long a node has for a reply, and how long it waits before its next query."""

from dataclasses import replace
from statistics import median

from flwr_byzasync.core.policy import Policy
from flwr_byzasync.core.state import Node, ServerState
from flwr_byzasync.core.transitions import Event
from flwr_byzasync.errors import INFRASTRUCTURE_FAULTS, Reason

TIMEOUT_FACTOR = 10.0
"""A message times out after this multiple of its node's median reply time."""
MIN_QUORUM_WAIT = 60.0
"""Seconds that the first step waits for a slow node at least: its process may have to restart."""
INITIAL_BACKOFF = 1.0
"""Seconds before the next query to a node that failed and has never replied."""
MAX_DOUBLINGS = 6
"""Waits grow to at most 64 times their first length: longer ones would lose a node for days."""


def time_limit(node: Node, policy: Policy) -> float:
    """Return the seconds after which a message to this node counts as unanswered.

    Ten times the median of its own reply times, within ``min_reply_timeout`` and
    ``reply_timeout`` of the policy; `reply_timeout` before its first reply. Other nodes' times
    do not enter, so a Byzantine node can only shorten its own limit.
    """
    liveness = policy.liveness
    if not node.reply_times:
        return liveness.reply_timeout
    usual = TIMEOUT_FACTOR * median(node.reply_times)
    return min(liveness.reply_timeout, max(liveness.min_reply_timeout, usual))


def next_query_time(state: ServerState, sent_at: float, now: float) -> float:
    """Return when a node that has just replied may be queried again, in seconds of the clock.

    Immediately without `max_rate`; otherwise no sooner after its last query than the median
    node's reply time divided by it. A node that has not replied yet counts with the time it has
    taken so far. Byzantine nodes that are a minority move the median no further than to the
    reply time of some honest node.

    Parameters
    ----------
    state : ServerState
        After the reply was accepted.
    sent_at, now : float
        When the query was sent, and when its reply arrived.
    """
    max_rate = state.policy.liveness.max_rate
    if max_rate is None:
        return now
    waits = {query.node_id: now - query.sent_at for query in state.in_flight.values()}
    times = [
        median(node.reply_times) if node.reply_times else waits[node_id]
        for node_id, node in state.nodes.items()
        if node.reply_times or node_id in waits
    ]
    # No reply time is known if every reply so far had waited while the server was not polling.
    return max(now, sent_at + median(times) / max_rate) if times else now


def after_failure(
    node: Node, event: Event, reason: Reason | None, policy: Policy, now: float
) -> Node:
    """Return a node after a failure: with the failure counted, and due after a wait.

    A fault that is not the client's doing counts as a silence; a query that could not be sent
    says nothing about its node.

    Parameters
    ----------
    node : Node
        Before.
    event : Event
        UNSENT, FAULT, LAST_FAULT or SILENT.
    reason : Reason or None
        Why a reply cannot be used.
    policy : Policy
        The time limits.
    now : float
        Seconds of the clock.
    """
    if event is Event.SILENT or (event is Event.FAULT and reason in INFRASTRUCTURE_FAULTS):
        node = replace(node, silences=node.silences + 1)
    elif event is not Event.UNSENT:
        quarantines = node.quarantines + (event is Event.LAST_FAULT)
        node = replace(node, faults=node.faults + 1, quarantines=quarantines)
    return replace(node, due=now + _wait(node, event, policy))


def _wait(node: Node, event: Event, policy: Policy) -> float:
    """Seconds before a node's next query, doubled with each failure in a row.

    After a silence the node gets its whole time limit again, then twice as much, up to 64 times
    `reply_timeout`: a new query replaces the old one, so a node slower than that would never be
    able to reply.
    """
    reply_timeout = policy.liveness.reply_timeout
    if event is Event.SILENT:
        longest = reply_timeout * 2.0**MAX_DOUBLINGS
        return min(_doubled(time_limit(node, policy), node.silences, 64), longest)
    if event is Event.LAST_FAULT:
        return _doubled(reply_timeout, node.quarantines)
    first = median(node.reply_times) if node.reply_times else INITIAL_BACKOFF
    return _doubled(first, node.faults + node.silences)


def _doubled(first: float, times: int, most: int = MAX_DOUBLINGS) -> float:
    """Return the wait after `times` failures in a row, the first one included."""
    return float(first * 2.0 ** min(max(times - 1, 0), most))
