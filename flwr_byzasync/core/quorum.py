"""Whether enough nodes have replied for a step, how many respond, and how many still can."""

from math import inf

from flwr_byzasync.core.policy import Policy
from flwr_byzasync.core.state import Node, ServerState
from flwr_byzasync.core.transitions import Status


def quorum_size(state: ServerState) -> int:
    """Return the number of distinct nodes that must have replied before the first step.

    One early Byzantine node must never steer alone: unless `Quorum.nodes` says otherwise, the
    first step waits for every initial node that is still connected and has not failed to reply,
    and for a majority of them in any case.
    """
    required = state.policy.quorum.nodes
    if required is not None:
        return required
    away = (Status.LOST, Status.QUARANTINED)
    pending = [state.nodes[node_id] for node_id in state.quorum_pending]
    expected = [
        node
        for node in pending
        if node.row is not None or not (node.status in away or node.faults or node.silences)
    ]
    return max(len(expected), min_nodes(state))


def min_nodes(state: ServerState) -> int:
    """Return the number of nodes without which no step is made where steps wait for nodes.

    `Quorum.nodes` or, without it, a majority of the initial nodes.
    """
    return state.policy.quorum.nodes or len(state.initial_nodes) // 2 + 1


def may_step(state: ServerState) -> bool:
    """Whether an accepted reply makes a step: after the quorum, unless `waits_for_nodes`."""
    if state.quorum_pending:
        return len(state.tables.parameters) >= quorum_size(state)
    return not waits_for_nodes(state)


def waits_for_nodes(state: ServerState) -> bool:
    """Whether too few nodes respond, and the policy is to wait for more.

    Too few are fewer than `Quorum.nodes` or, without it, no more than half of the initial nodes.
    Meanwhile replies are accepted without a step and responsive nodes are not queried: nobody
    gains weight, and a round lasts until enough nodes respond.
    """
    quorum = state.policy.quorum
    if quorum.on_loss == "continue" or state.quorum_pending:
        return False
    responsive = sum(is_responsive(node, state.policy) for node in state.nodes.values())
    return responsive < min_nodes(state)


def attainable_nodes(state: ServerState, deadline: float, timeout: float) -> int | None:
    """Return how many nodes can count for the next step at most, if the run goes on.

    Those that count already, and those that may still come, whether they are connected or not: a
    node that left may come back. One that is quarantined is well again if its next query finds
    it so, and cannot come if that is not due in time.

    Parameters
    ----------
    state : ServerState
        Before the first step, or while it `waits_for_nodes`.
    deadline : float
        Until when progress must be made, in seconds of the clock.
    timeout : float
        By how many seconds a reply puts the deadline off after the first step.

    Returns
    -------
    int or None
        None where there is no bound: fewer nodes were connected at the start than `Quorum.nodes`
        needs, so others are expected to join.
    """
    if len(state.initial_nodes) < min_nodes(state):
        return None
    count, due = 0, list[float]()
    for node in state.nodes.values():
        if node.row is not None if state.quorum_pending else is_responsive(node, state.policy):
            count += 1
        else:
            due.append(node.due if node.status is Status.QUARANTINED else -inf)
    for each in sorted(due):
        if each >= deadline:
            break
        count += 1
        deadline += 0 if state.quorum_pending else timeout
    return count


def is_responsive(node: Node, policy: Policy) -> bool:
    """Whether a node has a row, is connected, and has replied to its last query."""
    connected = node.row is not None and node.status in (Status.IDLE, Status.QUERIED)
    within_faults = node.faults < policy.liveness.max_consecutive_faults
    return connected and node.silences == 0 and within_faults


def all_quarantined(state: ServerState) -> bool:
    """Whether every node is quarantined; False without any node."""
    return {node.status for node in state.nodes.values()} == {Status.QUARANTINED}
