"""Whether what was unpacked could be the state of a run: sizes, ranges, and what fits together.

A checksum says that a file is as it was written. It does not say that what was written was right,
nor who wrote it: a state that no run can have would raise, or mislead, long after it was loaded.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from flwr_byzasync.checkpoints.codec import MisfitError
from flwr_byzasync.checkpoints.content import Position, TableContent
from flwr_byzasync.core.metrics import Metrics
from flwr_byzasync.core.pending_evaluations import PendingEvaluations
from flwr_byzasync.core.state import InFlightQuery, Node, ServerState
from flwr_byzasync.core.transitions import Status
from flwr_byzasync.optimizers import Iterates

MAX_INTEGER = 2**62 - 1
"""Largest count: sums of weights stay inside int64."""
MAX_FLOAT = 1e300
"""Largest time or metric: two of them still have a difference."""


def check_content(
    state: ServerState,
    fresh: Iterates,
    tables: Mapping[str, TableContent],
    position: Position,
) -> None:
    """Check what was read against the model, and its parts against each other.

    Parameters
    ----------
    state : ServerState
        As read, with the tables of a new run.
    fresh : Iterates
        Of a new run.
    tables : mapping of str to TableContent
        By the names of the fields of `Tables`.
    position : Position
        As read.

    Raises
    ------
    MisfitError
        Naming the first thing that no run can have written.
    """
    _check_vectors(state, fresh)
    counted = (state.iterates.step, state.next_query_id, state.accepted, state.staleness)
    _check(_are_counts((*counted, *state.reasons.values())), "a count of the state")
    for name, table in tables.items():
        like = getattr(state.tables, name).view().rows
        _check_vector(table.rows, like, f"the rows of {name}", len(table.counts))
    _check_tables(state, list(tables.values()))
    _check_nodes(state, tables["parameters"])
    for query in state.in_flight.values():
        _check_query(state, query)
    _check_position(state, position)
    _check_evaluations(position.evaluations)


def _check_vectors(state: ServerState, fresh: Iterates) -> None:
    for name in ("start", "w", "x"):
        _check_vector(getattr(state.iterates, name), getattr(fresh, name), name)
    device, layout = fresh.x.device, state.layout
    for name in ("buffers", "counters"):
        group = getattr(layout, name)
        like = torch.empty(group.size, dtype=group.dtype, device=device)
        _check_vector(getattr(state, name), like, name)


def _check_tables(state: ServerState, tables: list[TableContent]) -> None:
    """Check that the rows of all tables have the same counts and ages, and possible ones."""
    counts, sent, step = tables[0].counts, tables[0].sent, tables[0].step
    same = all((each.counts, each.sent, each.step) == (counts, sent, step) for each in tables)
    _check(same and len(sent) == len(counts), "the tables do not belong together: their rows")
    _check(_are_counts((step, state.iterates.step - step)), "the step of the tables")
    _check(_are_counts(counts, low=1) and sum(counts) <= MAX_INTEGER, "a row's count")
    _check(_are_counts((*sent, *(step - each for each in sent))), "a row's age")


def _check_nodes(state: ServerState, table: TableContent) -> None:
    nodes = state.nodes.values()
    rows = sorted(node.row for node in nodes if node.row is not None)
    _check(rows == list(range(len(table.counts))), "the rows of the nodes")
    _check(sum(node.accepted for node in nodes) <= state.accepted, "the number of replies")
    owing = {query.node_id for query in state.in_flight.values()}
    queried = {key for key, node in state.nodes.items() if node.status is Status.QUERIED}
    one_each = len(owing) == len(state.in_flight)
    _check(one_each and queried <= owing <= state.nodes.keys(), "the queries in flight")
    pending = state.quorum_pending
    _check(pending <= state.initial_nodes and pending <= state.nodes.keys(), "the initial nodes")
    for node in nodes:
        _check_node(state, node)
        if node.row is not None:
            _check(table.counts[node.row] == node.accepted, "a row's count")


def _check_node(state: ServerState, node: Node) -> None:
    counted = (node.accepted, node.faults, node.silences, node.quarantines)
    in_row, first = node.replies_in_row, int(node.row is not None)
    _check(_are_counts(counted) and first <= in_row <= node.accepted, "a node's count")
    _check(_are_finite((node.due, *node.reply_times)), "a node's time")
    _check(_are_metrics(node.metrics), "a node's metric")
    if node.point is not None:
        _check_vector(node.point, state.iterates.x, "a node's point")
    if node.row is not None:
        kept = state.policy.payload.keeps_previous_point
        _check((node.point is not None) == kept, "a node's point")


def _check_query(state: ServerState, query: InFlightQuery) -> None:
    left = (state.iterates.step - query.step, state.next_query_id - 1 - query.query)
    _check(_are_counts((query.step, query.query, *left)), "the number of a query in flight")
    times = (query.sent_at, query.limit, query.paused_for)
    _check(_are_finite(times), "the time of a query in flight")
    kept = state.policy.payload.keeps_query_point
    _check((query.point is not None) == kept, "the point of a query in flight")
    for vector in (query.point, query.model_shift):
        if vector is not None:
            _check_vector(vector, state.iterates.x, "the point of a query in flight")


def _check_position(state: ServerState, position: Position) -> None:
    start, current = position.round_start, position.server_round
    _check(_are_finite((position.now, position.elapsed, start.at)), "a time of the position")
    _check(_are_counts((current,), low=1), "the round")
    # Before nodes have connected, the size of a round may not be known.
    _check(_are_counts((position.size,), low=int(current > 1)), "the size of a round")
    made = (state.accepted - start.accepted, state.staleness - start.staleness)
    _check(_are_counts((start.accepted, start.staleness, *made)), "a count of the position")


def _check_evaluations(pending: PendingEvaluations) -> None:
    requests = pending.requests.values()
    rounds = {request.server_round for request in requests}
    _check(rounds <= pending.answers.keys(), "the round of an evaluation")
    _check(_are_counts(pending.answers.keys()), "the round of an evaluation")
    answers = (metrics for each in pending.answers.values() for metrics in each)
    _check(all(map(_are_metrics, answers)), "a metric of an evaluation")
    polled = () if pending.polled_at == -math.inf else (pending.polled_at,)
    times = (*polled, *(request.sent_at for request in requests))
    _check(_are_finite(times), "the time of an evaluation")


def _check_vector(vector: Tensor, like: Tensor, name: str, rows: int | None = None) -> None:
    """Check a vector, or a table of so many rows, against one of the model."""
    shape = tuple(like.shape) if rows is None else (rows, *like.shape[1:])
    fits = tuple(vector.shape) == shape and vector.dtype == like.dtype
    _check(fits, f"the shape or dtype of {name}")
    _check(bool(vector.isfinite().all()), f"{name}, with NaN or infinity:")


def _are_counts(values: Iterable[int], low: int = 0) -> bool:
    return all(low <= value <= MAX_INTEGER for value in values)


def _are_finite(values: Iterable[float]) -> bool:
    return all(-MAX_FLOAT < value < MAX_FLOAT for value in values)


def _are_metrics(metrics: Metrics) -> bool:
    values = metrics.values()
    return all(_are_finite(v if isinstance(v, tuple) else (v,)) for v in values)


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise MisfitError(f"{what} cannot be that of a run")
