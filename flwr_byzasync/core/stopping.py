"""Why a run must end before its last round."""

from flwr_byzasync.core.quorum import (
    all_quarantined,
    attainable_nodes,
    min_nodes,
    waits_for_nodes,
)
from flwr_byzasync.core.state import ServerState


def stop_reason(state: ServerState, now: float, deadline: float, timeout: float) -> str | None:
    """Return why the run must end now, or None if it may go on.

    It ends when the deadline has passed, and at once when every node is quarantined although
    none has ever replied, or none will be queried again before the deadline. So it does when a
    step waits for more nodes than can still come in time: see `attainable_nodes`.

    Parameters
    ----------
    state : ServerState
        The state of the run.
    now, deadline : float
        Seconds of the clock: the present, and until when progress must be made.
    timeout : float
        Longest time in seconds without progress, for the message.
    """
    if all_quarantined(state):
        next_due = min(node.due for node in state.nodes.values())
        if now >= deadline or state.accepted == 0 or next_due >= deadline:
            return "every connected node is quarantined after too many faults"
    if now < deadline:
        return _too_few(state, deadline, timeout)
    if state.quorum_pending or not state.initial_nodes:
        return f"the first step was not made within timeout={timeout:g} seconds"
    waiting = ", and on_loss='wait' waits for more nodes" if waits_for_nodes(state) else ""
    return f"no reply was accepted for timeout={timeout:g} seconds{waiting}"


def _too_few(state: ServerState, deadline: float, timeout: float) -> str | None:
    """Return why no step can be made any more, with what to change; None if one can."""
    if not state.quorum_pending and not waits_for_nodes(state):
        return None
    needed, attainable = min_nodes(state), attainable_nodes(state, deadline, timeout)
    if attainable is None or attainable >= needed:
        return None
    pending = bool(state.quorum_pending)
    step, other = ("the first step", "") if pending else ("a step", " or on_loss='continue'")
    return (
        f"{step} needs {needed} nodes, and only {attainable} of {len(state.nodes)} can reply "
        f"within timeout={timeout:g} seconds: the others are at fault, and are not queried again "
        f"before. Correct what the rejected replies show, pass a smaller Quorum(nodes=...){other}, "
        "or start more nodes and count them in min_available_nodes"
    )
