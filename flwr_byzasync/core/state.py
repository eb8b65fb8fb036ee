"""Everything the server knows, as frozen dataclasses; `events` says how it changes.

The one exception is the table of latest vectors, which an accepted reply overwrites row by row.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flwr_byzasync.aggregators import Aggregator, CoordinateWiseMedian
from flwr_byzasync.aggregators.median import middle_values
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
    before : Tensor or None
        (d,) the gradient at the node's last query, where it was asked for.
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
    """One line of the book: a message that was sent and may still be answered.

    Parameters
    ----------
    node_id, query, step : int
        Who was asked, the query's id, and the server steps before it.
    sent_at : float
        Seconds of the clock.
    limit : float
        Seconds after which it counts as unanswered.
    overdue : bool
        Whether it does.
    held : float
        Seconds by which `sent_at` was moved because the server did not listen.
    point : Tensor or None
        (d,) the server's x of then, where the reply cannot be read without it; what was sent
        but for rounding to the model's own dtypes.
    before : bool
        Whether the point of the node's last query was sent as well.
    jump : Tensor or None
        (d,) how far somebody has moved the server's x since, a wrapper for example: the point
        counts as moved with it. None: nobody has.
    """

    node_id: int
    query: int
    step: int
    sent_at: float
    limit: float
    overdue: bool = False
    paused_for: float = 0.0
    point: Tensor | None = None
    with_previous: bool = False
    model_shift: Tensor | None = None

    @property
    def shifted_point(self) -> Tensor | None:
        """The point, moved as the server's x was by others than training."""
        return (
            self.point
            if self.point is None or self.model_shift is None
            else self.point + self.model_shift
        )


@dataclass(frozen=True)
class Node:
    """What the server knows of one node. Nothing in it is taken from what the node claims.

    Parameters
    ----------
    row : int or None
        Its row in the table, from its first accepted reply on unless it is dropped.
    status, due : Status, float
        Every event: see `Status`; seconds of the clock before which it is not asked.
    accepted, faults, silences, shuts : int
        Every reply: accepted ones in all (the count s_i); faults, silences and times that it
        was shut since the last accepted one.
    reply_times : tuple of float
        Every accepted reply: seconds that the last ones took.
    metrics : mapping of str to float or tuple of float
        Every accepted reply: what it reported last.
    begun : int
        Every accepted reply: how many there were since its row began; `accepted`, unless the
        row was dropped.
    point : Tensor or None
        (d,) every accepted reply: the query that it answered, where the next one says so too.
    """

    row: int | None = None
    status: Status = Status.IDLE
    due: float = 0.0
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
        """The point of its last query, if its row began there."""
        return None if self.row is None else self.point


@dataclass(frozen=True)
class Tables:
    """Latest values of every node, by how they are aggregated."""

    parameters: Table[object]
    buffers: Table[object]
    counters: Table[object]


@dataclass(frozen=True)
class ServerState:
    """The whole state of a run.

    Parameters
    ----------
    layout, optimizer, policy, founders
        Set once: the model, the server's step, the policy, and the nodes of the start.
    awaited
        The founders that the first step waits for; empty once it is made.
    tables
        Set once; overwritten in place by each accepted reply.
    iterates, buffers, counters
        Every step: the optimizer's state and the model's other arrays, flat.
    nodes, book, queries
        Every event: nodes by id, messages in flight by message id, queries sent so far.
    accepted, staleness, reasons
        Every reply: accepted replies, the sum of their staleness, rejected ones by reason.
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
        Names in it that are no parameters.
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
