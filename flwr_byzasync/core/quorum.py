"""Whether enough nodes have replied for a step."""

from flwr_byzasync.core.policy import Policy
from flwr_byzasync.core.state import Node, ServerState
from flwr_byzasync.core.transitions import Status


def quorum(state: ServerState) -> int:
    """Return the number of distinct nodes that must have replied before the first step.

    One early liar must never steer alone: without `min_nodes` every founder is waited for that
    is still there and has not failed to reply, and more than half of them in any case.
    """
    if state.policy.min_nodes is not None:
        return state.policy.min_nodes
    away = (Status.LOST, Status.QUARANTINED)
    awaited = [state.nodes[node_id] for node_id in state.quorum_pending]
    hoped_for = [
        node
        for node in awaited
        if node.row is not None or not (node.status in away or node.faults or node.silences)
    ]
    return max(len(hoped_for), len(state.initial_nodes) // 2 + 1)


def may_step(state: ServerState) -> bool:
    """Whether an accepted reply makes a step: `quorum` for the first one, then unless `paused`."""
    if state.quorum_pending:
        return len(state.tables.parameters) >= quorum(state)
    return not paused(state)


def paused(state: ServerState) -> bool:
    """Whether too few nodes answer, and the policy is to wait for more.

    Too few are fewer than `min_nodes` or, without it, no more than half of the founders. During
    a pause replies are taken in without a step, and a node that answers is not asked again:
    nobody gains weight, and a round lasts until the pause is over.
    """
    policy = state.policy
    if policy.below_min_nodes == "continue" or state.quorum_pending:
        return False
    enough = policy.min_nodes or len(state.initial_nodes) // 2 + 1
    return sum(is_responsive(node, policy) for node in state.nodes.values()) < enough


def is_responsive(node: Node, policy: Policy) -> bool:
    """Whether a node has a row, is there, and has replied to what it was asked last."""
    there = node.row is not None and node.status in (Status.IDLE, Status.QUERIED)
    return there and node.silences == 0 and node.faults < policy.shut_after


def all_quarantined(state: ServerState) -> bool:
    """Whether every node is shut."""
    return {node.status for node in state.nodes.values()} == {Status.QUARANTINED}
