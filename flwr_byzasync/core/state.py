"""Everything the server knows, as frozen dataclasses; `events` says how it changes.

The one exception is the table of latest vectors, which an accepted reply overwrites row by row.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flwr_byzasync.aggregators import Aggregator, CoordinateWiseMedian
from flwr_byzasync.aggregators.median import middle_values
from flwr_byzasync.core.clock_time import ClockTime
from flwr_byzasync.core.layout import Layout, ModelLayout
from flwr_byzasync.core.metrics import Metrics
from flwr_byzasync.core.policy import Policy
from flwr_byzasync.core.table import Table
from flwr_byzasync.core.transitions import Status
from flwr_byzasync.errors import Reason
from flwr_byzasync.optimizers import Iterates, Optimizer
from flwr_byzasync.weights import WeightPolicy


@dataclass(frozen=True)
class Update:
    """A reply that can be used.

    Parameters
    ----------
    vector : Tensor
        (d,) finite, of the parameters' flat dtype, on the server's device.
    buffers, counters : Tensor
        The model's other arrays, flat; empty where the model has none.
    metrics : mapping of str to float or tuple of float
        Finite numbers that the node reported. They are shown, never used.
    previous : Tensor or None
        (d,) the gradient at the node's previous query, where one was requested.
    """

    vector: Tensor
    buffers: Tensor
    counters: Tensor
    metrics: Metrics = field(default_factory=dict)
    previous: Tensor | None = None


@dataclass(frozen=True)
class Rejected:
    """A reply that cannot be used, and why."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class InFlightQuery:
    """A query that was sent and may still be answered.

    Parameters
    ----------
    node_id, query, step : int
        The node queried, the query's id, and the server steps before it.
    sent_at : float
        Seconds of the clock.
    limit : float
        Seconds after which it counts as unanswered.
    overdue : bool
        Whether that limit has passed.
    paused_for : float
        Total pause credited to this message while the server was not polling: `sent_at` was
        moved by as much.
    point : Tensor or None
        (d,) the server's x when it was sent, where the payload needs it; before rounding to the
        model's dtypes.
    with_previous : bool
        Whether the node's previous query point was sent as well.
    model_shift : Tensor or None
        (d,) how far something other than training, a wrapper for example, has moved the
        server's x since: the point counts as moved with it. None: not at all.
    """

    node_id: int
    query: int
    step: int
    sent_at: ClockTime
    limit: float
    overdue: bool = False
    paused_for: float = 0.0
    point: Tensor | None = None
    with_previous: bool = False
    model_shift: Tensor | None = None

    @property
    def shifted_point(self) -> Tensor | None:
        """The point, moved as far as something other than training has moved x."""
        if self.point is None or self.model_shift is None:
            return self.point
        return self.point + self.model_shift


@dataclass(frozen=True)
class Node:
    """What the server knows of one node. Nothing in it is taken from what the node claims.

    Parameters
    ----------
    row : int or None
        Its row in the table, from its first accepted reply on unless it is dropped.
    status, due : Status, float
        Changed by every event: see `Status`; seconds of the clock before which it is not queried.
    accepted, faults, silences, quarantines : int
        Changed by every reply: accepted replies in all (the count s_i); faults, silences and
        quarantines since the last accepted one.
    reply_times : tuple of float
        Changed by every accepted reply: seconds that the latest ones took.
    metrics : mapping of str to float or tuple of float
        Changed by every accepted reply: what it reported.
    replies_in_row : int
        Changed by every accepted reply: how many there were since its row began; `accepted`,
        unless the row was dropped.
    point : Tensor or None
        (d,) changed by every accepted reply: the query that it answered, where the next query
        carries it.
    """

    row: int | None = None
    status: Status = Status.IDLE
    due: ClockTime = 0.0
    accepted: int = 0
    faults: int = 0
    silences: int = 0
    quarantines: int = 0
    reply_times: tuple[float, ...] = ()
    metrics: Metrics = field(default_factory=dict)
    replies_in_row: int = 0
    point: Tensor | None = None

    @property
    def previous_point(self) -> Tensor | None:
        """The point of its previous query, if its row began there."""
        return None if self.row is None else self.point


@dataclass(frozen=True)
class Tables:
    """The nodes' latest values, by how they are aggregated; row i of each is the same node's."""

    parameters: Table[object]
    buffers: Table[object]
    counters: Table[object]

    def __iter__(self) -> Iterator[Table[object]]:
        return iter((self.parameters, self.buffers, self.counters))

    def replace(self, row: int, update: Update, count: int, sent: int, step: int) -> None:
        """Write a node's reply into its row of every table: see `Table.replace`."""
        self.parameters.replace(row, update.vector, count, sent, step)
        self.buffers.replace(row, update.buffers, count, sent, step)
        self.counters.replace(row, update.counters, count, sent, step)

    def drop(self, row: int, step: int) -> None:
        """Drop a row of every table; the rows after it move up."""
        for table in self:
            table.drop(row, step)


@dataclass(frozen=True)
class ServerState:
    """The whole state of a run.

    Parameters
    ----------
    layout, optimizer, policy, initial_nodes
        Set once: the model, the server's step, the policy, and the nodes connected at the start.
    quorum_pending
        The initial nodes that the first step waits for; empty once it is made.
    tables
        Set once; overwritten in place by each accepted reply.
    iterates, buffers, counters
        Changed by every step: the optimizer's state and the model's other arrays, flat.
    nodes, in_flight, next_query_id
        Changed by every event: nodes by id, unanswered queries by message id, queries so far.
    accepted, staleness, reasons
        Changed by every reply: accepted replies, the sum of their staleness, rejected replies
        by reason.
    """

    layout: ModelLayout
    optimizer: Optimizer
    policy: Policy
    tables: Tables
    iterates: Iterates
    buffers: Tensor
    counters: Tensor
    initial_nodes: frozenset[int] = frozenset()
    quorum_pending: frozenset[int] = frozenset()
    nodes: Mapping[int, Node] = field(default_factory=dict)
    in_flight: Mapping[str, InFlightQuery] = field(default_factory=dict)
    next_query_id: int = 0
    accepted: int = 0
    staleness: int = 0
    reasons: Mapping[Reason, int] = field(default_factory=dict)


def initial_state(
    tensors: Mapping[str, Tensor],
    buffers: Collection[str],
    aggregator: Aggregator,
    optimizer: Optimizer,
    policy: Policy,
    device: torch.device,
    weigh: WeightPolicy | None = None,
) -> ServerState:
    """Return the state before the first event.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        The initial model.
    buffers : collection of str
        Names in it that are not parameters.
    aggregator, optimizer, policy
        The rule for the parameters, the server's step, and when to make it.
    device : torch.device
        Where rows are kept and aggregated.
    weigh : WeightPolicy, optional
        What each row weighs. None: the node's accepted replies.

    Raises
    ------
    ConfigError
        If the model has no floating parameters, or values that are not finite.
    """
    layout = ModelLayout.of(tensors, buffers)
    rules = {
        "parameters": aggregator,
        # A median: every value stays among the nodes' own, so a variance stays positive.
        "buffers": CoordinateWiseMedian(),
        "counters": _lower_median,
    }
    tables = {}
    for name, rule in rules.items():
        group: Layout = getattr(layout, name)
        tables[name] = Table[object](rule, group.size, group.dtype, device, weigh)
    return ServerState(
        layout=layout,
        optimizer=optimizer,
        policy=policy,
        tables=Tables(**tables),
        iterates=optimizer.init(layout.parameters.flatten(tensors, device)),
        buffers=layout.buffers.flatten(tensors, device),
        counters=layout.counters.flatten(tensors, device),
    )


def _lower_median(rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted median of integers that is always one of them: no average of two counters."""
    return middle_values(rows, weights)[0]
