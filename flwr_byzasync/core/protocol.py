"""One event of one node carried out: its status, its wait, its row, and the count of reasons."""

from dataclasses import replace

from flwr_byzasync.core.state import ServerState
from flwr_byzasync.core.timing import after_failure
from flwr_byzasync.core.transitions import Effect, Event, move
from flwr_byzasync.errors import Reason


def advance(
    state: ServerState, node_id: int, event: Event, reason: Reason | None = None, now: float = 0.0
) -> ServerState:
    """Return the state after an entry of the transition table other than an acceptance."""
    node = state.nodes[node_id]
    status, effects = move(node.status, event)
    if Effect.BACK_OFF in effects:
        node = after_failure(node, event, reason, state.policy, now)
    state = replace(state, nodes={**state.nodes, node_id: replace(node, status=status)})
    if Effect.COUNT in effects and reason is not None:
        state = count_reason(state, reason)
    drops = Effect.RETIRE in effects and state.policy.liveness.departed == "drop"
    return _drop_row(state, node.row) if drops and node.row is not None else state


def count_reason(state: ServerState, reason: Reason) -> ServerState:
    """Return the state with one more reply rejected for a reason."""
    return replace(state, reasons={**state.reasons, reason: state.reasons.get(reason, 0) + 1})


def _drop_row(state: ServerState, row: int) -> ServerState:
    """Forget a row; the rows after it move up."""
    state.tables.drop(row, state.iterates.step)
    nodes = dict(state.nodes)
    for node_id, node in state.nodes.items():
        if node.row is not None and node.row >= row:
            nodes[node_id] = replace(node, row=None if node.row == row else node.row - 1)
    return replace(state, nodes=nodes)
