"""Everything the server knows, as frozen dataclasses; `events` says how it changes.

The one exception is the table of latest vectors, which an accepted reply overwrites row by row.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flwr_byzasync.aggregators import Aggregator, CoordinateWiseMedian
from flwr_byzasync.aggregators.median import middle_values
from flwr_byzasync.errors import Reason, check_choice, check_integer, check_number, plain_numbers
from flwr_byzasync.layout import Layout, ModelLayout
from flwr_byzasync.optimizers import Iterates, Optimizer
from flwr_byzasync.reading import Reading
from flwr_byzasync.table import Table
from flwr_byzasync.transitions import Status
from flwr_byzasync.weights import WeightPolicy

Metrics = Mapping[str, float | tuple[float, ...]]
"""What a node reported: finite numbers, alone or in a row."""
BELOW_MIN_NODES = ("continue", "wait")
LOST_ROWS = ("keep", "drop")
"""What `Policy` may say."""


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
    before: Tensor | None = None


@dataclass(frozen=True)
class Rejected:
    """A reply that cannot be used, and why."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class Sent:
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
    held: float = 0.0
    point: Tensor | None = None
    before: bool = False
    jump: Tensor | None = None

    @property
    def followed(self) -> Tensor | None:
        """The point, moved as the server's x was by others than training."""
        return self.point if self.point is None or self.jump is None else self.point + self.jump


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
    shuts: int = 0
    reply_times: tuple[float, ...] = ()
    metrics: Metrics = field(default_factory=dict)
    begun: int = 0
    point: Tensor | None = None

    @property
    def before(self) -> Tensor | None:
        """The point of its last query, if its row began there."""
        return None if self.row is None else self.point


@dataclass(frozen=True)
class Policy:
    """What decides when a step is made and when a node is given up.

    Parameters
    ----------
    min_nodes : int or None
        Distinct nodes that must have replied before the first step. None: all that were
        connected at the start and are still there, leaving out any that take ten times as long
        as the others, and never less than more than half of them.
    shut_after : int
        Faults in a row after which a node is left alone for a long time.
    reply_timeout : float
        Seconds after which a message counts as unanswered at the latest.
    min_reply_timeout : float
        Seconds that a message is given at least, however fast its node was before.
    below_min_nodes : {"continue", "wait"}
        What happens after the first step while fewer nodes answer: see `paused`.
    lost_rows : {"keep", "drop"}
        What becomes of the row of a node that is lost: its weight is frozen, or it is forgotten
        until the node replies again.
    max_pace : float or None
        How many times as often as the median node a node may be asked, >= 1; None: no limit.
    reading : Reading
        How a reply becomes a row.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    min_nodes: int | None = None
    shut_after: int = 5
    reply_timeout: float = 600.0
    min_reply_timeout: float = 60.0
    below_min_nodes: str = "continue"
    lost_rows: str = "keep"
    max_pace: float | None = None
    reading: Reading = field(default_factory=Reading)

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.min_nodes is not None:
            fix = "pass a positive number, or None"
            check_integer("min_nodes", self.min_nodes, low=1, fix=fix)
        check_integer("shut_after", self.shut_after, low=1, fix="pass for example shut_after=5")
        for name in ("reply_timeout", "min_reply_timeout"):
            seconds, fix = getattr(self, name), "pass a time in seconds"
            check_number(name, seconds, low=0, closed="neither", fix=fix)
        for name, choices in (("below_min_nodes", BELOW_MIN_NODES), ("lost_rows", LOST_ROWS)):
            fix = f"leave it out or pass {choices[1]!r}"
            check_choice(name, getattr(self, name), choices, fix=fix)
        if self.max_pace is not None:
            fix = "pass for example max_pace=10.0, or None for no limit"
            check_number("max_pace", self.max_pace, low=1, fix=fix)


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
    founders: frozenset[int] = frozenset()
    awaited: frozenset[int] = frozenset()
    nodes: Mapping[int, Node] = field(default_factory=dict)
    book: Mapping[str, Sent] = field(default_factory=dict)
    queries: int = 0
    accepted: int = 0
    staleness: int = 0
    reasons: Mapping[Reason, int] = field(default_factory=dict)


def begin(
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


def quorum(state: ServerState) -> int:
    """Return the number of distinct nodes that must have replied before the first step.

    One early liar must never steer alone: without `min_nodes` every founder is waited for that
    is still there and has not failed to reply, and more than half of them in any case.
    """
    if state.policy.min_nodes is not None:
        return state.policy.min_nodes
    away = (Status.LOST, Status.SHUT)
    awaited = [state.nodes[node_id] for node_id in state.awaited]
    hoped_for = [
        node
        for node in awaited
        if node.row is not None or not (node.status in away or node.faults or node.silences)
    ]
    return max(len(hoped_for), len(state.founders) // 2 + 1)


def may_step(state: ServerState) -> bool:
    """Whether an accepted reply makes a step: `quorum` for the first one, then unless `paused`."""
    if state.awaited:
        return len(state.tables.parameters) >= quorum(state)
    return not paused(state)


def paused(state: ServerState) -> bool:
    """Whether too few nodes answer, and the policy is to wait for more.

    Too few are fewer than `min_nodes` or, without it, no more than half of the founders. During
    a pause replies are taken in without a step, and a node that answers is not asked again:
    nobody gains weight, and a round lasts until the pause is over.
    """
    policy = state.policy
    if policy.below_min_nodes == "continue" or state.awaited:
        return False
    enough = policy.min_nodes or len(state.founders) // 2 + 1
    return sum(answers(node, policy) for node in state.nodes.values()) < enough


def answers(node: Node, policy: Policy) -> bool:
    """Whether a node has a row, is there, and has replied to what it was asked last."""
    there = node.row is not None and node.status in (Status.IDLE, Status.ASKED)
    return there and node.silences == 0 and node.faults < policy.shut_after


def all_shut(state: ServerState) -> bool:
    """Whether every node is shut."""
    return {node.status for node in state.nodes.values()} == {Status.SHUT}


def _lower_median(rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted median of integers that is always one of them: no average of two counters."""
    return middle_values(rows, weights)[0]
