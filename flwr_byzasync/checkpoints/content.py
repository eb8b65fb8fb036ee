"""What a checkpoint holds besides the server's own dataclasses."""

from dataclasses import dataclass, field

from torch import Tensor

from flwr_byzasync.core.pending_evaluations import PendingEvaluations
from flwr_byzasync.core.statistics import RoundStart
from flwr_byzasync.core.table import Table


@dataclass(frozen=True)
class TableContent:
    """What a `Table` cannot derive: its rows, and the properties of these names."""

    rows: Tensor
    counts: tuple[int, ...]
    sent: tuple[int, ...]
    step: int

    @classmethod
    def of(cls, table: Table[object]) -> "TableContent":
        """Return the content of a table; the rows are not copied."""
        return cls(table.view().rows, table.counts, table.sent, table.step)


@dataclass(frozen=True)
class Position:
    """Where a run is, besides the server's state.

    Parameters
    ----------
    now : float
        The clock when the position was taken.
    elapsed : float
        Seconds since the run began, in all its processes.
    server_round, size : int
        The current round, and accepted replies in a round.
    round_start : RoundStart
        When that round began.
    connected : tuple of int
        The connected nodes.
    history : str
        Metrics of all rounds, one JSON entry each and one text in all: a long run has many, and
        a single string is written fastest.
    evaluations : PendingEvaluations
        Evaluations by nodes that are under way.
    run_id : int
        Flower's id of the `flwr run`: no other run can pull its replies.
    """

    now: float
    elapsed: float
    server_round: int
    size: int
    round_start: RoundStart
    connected: tuple[int, ...] = ()
    history: str = ""
    evaluations: PendingEvaluations = field(default_factory=PendingEvaluations)
    run_id: int = 0
