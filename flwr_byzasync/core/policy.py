"""When a step is made, and when a node is given up."""

from dataclasses import dataclass, field

from flwr_byzasync._checks import check_choice, check_integer, check_number, coerce_numbers
from flwr_byzasync.core.contribution import Reading

BELOW_MIN_NODES = ("continue", "wait")
LOST_ROWS = ("keep", "drop")
"""What `Policy` may say."""


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
        coerce_numbers(self)
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
