"""How long a node is given for a reply, and how long it waits before it is asked again."""

from dataclasses import replace
from statistics import median

from flwr_byzasync.core.policy import Policy
from flwr_byzasync.core.state import Node, ServerState
from flwr_byzasync.core.transitions import Event
from flwr_byzasync.errors import INFRASTRUCTURE_FAULTS, Reason

PATIENCE = 10.0
"""A node is late once it takes this many times as long as usual,"""
LEAST_PATIENCE = 60.0
"""and at least these seconds: its process may have to start anew."""
FIRST_WAIT = 1.0
"""Seconds before a node of unknown pace is asked again after a fault."""
MOST_DOUBLINGS = 6
"""A wait grows to 64 times its first length at most, or a node could be lost for days."""


def time_limit(node: Node, policy: Policy) -> float:
    """Return the seconds after which a message to this node counts as unanswered.

    Ten times the median of its own reply times, at least `policy.min_reply_timeout` and at most
    `policy.reply_timeout`, which it is given before its first reply. No other node's pace
    enters, so that a liar can only shorten its own time.
    """
    if not node.reply_times:
        return policy.reply_timeout
    usual = PATIENCE * median(node.reply_times)
    return min(policy.reply_timeout, max(policy.min_reply_timeout, usual))


def earliest(state: ServerState, sent_at: float, now: float) -> float:
    """Return when a node that has just replied may be asked again, in seconds of the clock.

    At once without `max_pace`; else no sooner after its last query than what the median node
    usually takes to reply, divided by it. A node that has not replied yet takes at least as long
    as it has taken so far. Liars that are fewer than half of the nodes move the median no
    further than to what some honest node takes.

    Parameters
    ----------
    state : ServerState
        With the reply taken in.
    sent_at, now : float
        When the node was sent the query that it replied to, and when its reply came.
    """
    most = state.policy.max_pace
    if most is None:
        return now
    waits = {line.node_id: now - line.sent_at for line in state.book.values()}
    times = [
        median(node.reply_times) if node.reply_times else waits[node_id]
        for node_id, node in state.nodes.items()
        if node.reply_times or node_id in waits
    ]
    # Nobody's pace is known where all that came so far had waited while the server did not listen.
    return max(now, sent_at + median(times) / most) if times else now


def failed(node: Node, event: Event, reason: Reason | None, policy: Policy, now: float) -> Node:
    """Return a node after a failure: counted once, here alone, and due after a wait.

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
        The time limit.
    now : float
        Seconds of the clock.
    """
    if event is Event.SILENT or (event is Event.FAULT and reason in INFRASTRUCTURE_FAULTS):
        node = replace(node, silences=node.silences + 1)
    elif event is not Event.UNSENT:
        shuts = node.shuts + (event is Event.LAST_FAULT)
        node = replace(node, faults=node.faults + 1, shuts=shuts)
    return replace(node, due=now + _wait(node, event, policy))


def _wait(node: Node, event: Event, policy: Policy) -> float:
    """Seconds before a node is asked again, doubled with each failure in a row.

    After a silence the node is given its whole time limit again, and then twice as much, up to
    64 times `reply_timeout`: asking anew strikes the old message out, so a node slower than
    that would never be heard.
    """
    longest = policy.reply_timeout * 2.0**MOST_DOUBLINGS
    if event is Event.SILENT:
        return min(_doubled(time_limit(node, policy), node.silences, 64), longest)
    if event is Event.LAST_FAULT:
        return _doubled(policy.reply_timeout, node.shuts)
    pace = median(node.reply_times) if node.reply_times else FIRST_WAIT
    return _doubled(pace, node.faults + node.silences)


def _doubled(first: float, times: int, most: int = MOST_DOUBLINGS) -> float:
    """Return the wait after `times` failures in a row, the first one included."""
    return float(first * 2.0 ** min(max(times - 1, 0), most))
