"""Why a run must end before its last round."""

from flwr_byzasync.core.quorum import all_quarantined, waits_for_nodes
from flwr_byzasync.core.state import ServerState


def stop_reason(state: ServerState, now: float, deadline: float, timeout: float) -> str | None:
    """Return why the run must end now, or None if it may go on.

    It ends when the deadline has passed, and at once when every node is quarantined although
    none has ever replied, or none will be queried again before the deadline.

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
        return None
    if state.quorum_pending or not state.initial_nodes:
        return f"the first step was not made within timeout={timeout:g} seconds"
    waiting = ", and on_loss='wait' waits for more nodes" if waits_for_nodes(state) else ""
    return f"no reply was accepted for timeout={timeout:g} seconds{waiting}"
