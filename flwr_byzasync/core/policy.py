"""When a step is made, and when a node is given up."""

from dataclasses import dataclass, field
from typing import Literal

from flwr_byzasync._checks import check_choice, check_integer, check_number, coerce_numbers
from flwr_byzasync.core.contribution import Momenta, Payload

ON_LOSS = ("continue", "wait")
DEPARTED = ("keep", "drop")


@dataclass(frozen=True)
class Quorum:
    """How many nodes must have replied before the first step, and what if fewer respond later.

    Parameters
    ----------
    nodes : int, optional
        Distinct nodes that must have replied before the first step, >= 1. None: every node that
        was connected at the start and still is, except those that take ten times as long as the
        others; never less than a majority of them.
    on_loss : {"continue", "wait"}, default "continue"
        What happens after the first step while fewer than `nodes` respond, or no more than half
        of the initial nodes where that is None. "wait" accepts replies without a step and does
        not query responsive nodes, until enough respond. `timeout` ends the run, and so does
        knowing before it that not enough can come in time.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    nodes: int | None = None
    on_loss: Literal["continue", "wait"] = "continue"

    def __post_init__(self) -> None:
        coerce_numbers(self)
        if self.nodes is not None:
            fix = "pass a positive number, or None"
            check_integer("nodes", self.nodes, low=1, fix=fix)
        check_choice("on_loss", self.on_loss, ON_LOSS, fix="leave it out or pass 'wait'")


@dataclass(frozen=True)
class Liveness:
    """Timeouts, quarantine and rate limit of a node.

    Parameters
    ----------
    reply_timeout : float, default 600.0
        Seconds after which a message counts as unanswered, in (0, inf). Once a node has
        replied, its limit is ten times its own median reply time, if that is less.
    min_reply_timeout : float, default 60.0
        Lower bound of that limit in seconds, in (0, inf): a fast node that restarts is slower
        than usual. `reply_timeout` still wins where it is smaller.
    max_consecutive_faults : int, default 5
        Unusable replies in a row after which a node is quarantined, >= 1. It is queried again
        after `reply_timeout`: a usable reply restores it, another fault quarantines it for
        twice as long, up to 64 times.
    max_rate : float, optional
        How many times as often as the median node a node may be queried, in [1, inf); None: no
        limit. Every reply makes a step, so a Byzantine node that does not compute would move
        the model many times between two honest replies. Faster honest nodes wait.
    departed : {"keep", "drop"}, default "keep"
        Whether the row of a node that left or fell silent keeps its weight, or is dropped until
        the node replies again, which restores its count.
    poll_interval : float, default 0.1
        Seconds between two polls when nothing arrived, in (0, inf). Simulated nodes poll every
        0.1 s in the order of their partition-ids: polling much more often lets the first of
        them reply more often than the last.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    reply_timeout: float = 600.0
    min_reply_timeout: float = 60.0
    max_consecutive_faults: int = 5
    max_rate: float | None = None
    departed: Literal["keep", "drop"] = "keep"
    poll_interval: float = 0.1

    def __post_init__(self) -> None:
        coerce_numbers(self)
        for name in ("reply_timeout", "min_reply_timeout", "poll_interval"):
            seconds, fix = getattr(self, name), "pass a time in seconds"
            check_number(name, seconds, low=0, closed="neither", fix=fix)
        fix = "pass for example max_consecutive_faults=5"
        check_integer("max_consecutive_faults", self.max_consecutive_faults, low=1, fix=fix)
        if self.max_rate is not None:
            fix = "pass for example max_rate=10.0, or None for no limit"
            check_number("max_rate", self.max_rate, low=1, fix=fix)
        check_choice("departed", self.departed, DEPARTED, fix="leave it out or pass 'drop'")


@dataclass(frozen=True)
class Policy:
    """The settings that events depend on.

    Parameters
    ----------
    quorum : Quorum
        When the first step is made, and what if nodes are lost.
    liveness : Liveness
        When a node is given up.
    payload : Payload
        How a reply becomes a row.
    """

    quorum: Quorum = field(default_factory=Quorum)
    liveness: Liveness = field(default_factory=Liveness)
    payload: Payload = field(default_factory=Momenta)
