"""Who is connected: nodes that join, leave, come back, and are forgotten."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from flwr_byzasync.core.protocol import advance
from flwr_byzasync.core.state import Node, ServerState
from flwr_byzasync.core.transitions import TRANSITIONS, Event
from flwr_byzasync.errors import Reason

MAX_ABSENT = 1000
"""Departed nodes without a row that are remembered: clients that reconnect under ever new ids
must not fill memory, and a node that soon returns must not find its faults forgiven."""


def on_connected(state: ServerState, connected: Iterable[int]) -> ServerState:
    """Return the state once new nodes have joined and missing ones are gone.

    The nodes of the first call are the initial nodes, which the first step waits for.
    """
    here = dict.fromkeys(connected)
    nodes = dict(state.nodes)
    for node_id in here:
        nodes.setdefault(node_id, Node())
    if len(nodes) > len(state.nodes):
        initial = state.initial_nodes or frozenset(here)
        pending = state.quorum_pending if state.initial_nodes else initial
        state = replace(state, nodes=nodes, initial_nodes=initial, quorum_pending=pending)
    for node_id, node in nodes.items():
        if node_id not in here and (node.status, Event.GONE) in TRANSITIONS:
            state = advance(state, node_id, Event.GONE, Reason.NODE_GONE)
    return _without_old_absentees(state, here)


def without_absent(state: ServerState, connected: Collection[int]) -> ServerState:
    """Return the state of a run that resumes among other nodes.

    Absent nodes are forgotten with their rows: in a new run every node has a new id and would
    count twice. The connected ones become the initial nodes, which the next step waits for.
    """
    kept = {node_id: node for node_id, node in state.nodes.items() if node_id in connected}
    rows = sorted(node.row for node in kept.values() if node.row is not None)
    for index in reversed(range(len(state.tables.parameters))):
        if index not in rows:
            state.tables.drop(index, state.iterates.step)
    nodes = {
        node_id: node if node.row is None else replace(node, row=rows.index(node.row))
        for node_id, node in kept.items()
    }
    nodes |= {node_id: Node() for node_id in connected if node_id not in nodes}
    queries = {key: query for key, query in state.in_flight.items() if query.node_id in nodes}
    initial = frozenset(connected)
    return replace(
        state, nodes=nodes, in_flight=queries, initial_nodes=initial, quorum_pending=initial
    )


def _without_old_absentees(state: ServerState, connected: Collection[int]) -> ServerState:
    """Forget the oldest departed nodes without a row, once there are more than `MAX_ABSENT`."""
    if len(state.nodes) - len(connected) <= MAX_ABSENT:
        return state
    absent = [
        node_id
        for node_id, node in state.nodes.items()
        if node.row is None and node_id not in connected and node_id not in state.quorum_pending
    ]
    forgotten = set(absent[: max(0, len(absent) - MAX_ABSENT)])
    nodes = {node_id: node for node_id, node in state.nodes.items() if node_id not in forgotten}
    queries = {k: query for k, query in state.in_flight.items() if query.node_id not in forgotten}
    return replace(state, nodes=nodes, in_flight=queries)
