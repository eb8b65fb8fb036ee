"""What a run says about itself: a snapshot for programs, and where a round began."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from flwr_byzasync.core.clock_time import ClockTime
from flwr_byzasync.core.metrics import Metrics
from flwr_byzasync.core.state import ServerState
from flwr_byzasync.errors import Reason


@dataclass(frozen=True)
class Statistics:
    """A snapshot of a run.

    Parameters
    ----------
    replies : mapping of int to int
        Accepted replies by node id, in the order of joining: the counts s_i.
    reasons : mapping of Reason to int
        Rejected replies by reason.
    steps : int
        Server steps.
    mean_staleness : float
        Steps between sending a query and receiving its reply, averaged over accepted replies.
    departed_replies : int
        Accepted replies of nodes that were forgotten when the run resumed among other nodes.
    weights : mapping of int to float
        Share of the weight that each node's row had in the last direction, in [0, 1]; 0 without
        a row.
    stop_reason : str
        Why the run ended before its last round, as in the log; empty if it did not, or an
        `EarlyStop` ended it.
    """

    replies: Mapping[int, int] = field(default_factory=dict)
    reasons: Mapping[Reason, int] = field(default_factory=dict)
    steps: int = 0
    mean_staleness: float = 0.0
    departed_replies: int = 0
    weights: Mapping[int, float] = field(default_factory=dict)
    stop_reason: str = ""

    @property
    def accepted(self) -> int:
        """Accepted replies of all nodes."""
        return self.departed_replies + sum(self.replies.values())

    @property
    def rejected(self) -> int:
        """Rejected replies, for any reason."""
        return sum(self.reasons.values())

    def share(self, node_ids: set[int]) -> float:
        """Return these nodes' share of all accepted replies, in [0, 1]."""
        held = sum(count for node_id, count in self.replies.items() if node_id in node_ids)
        total = self.accepted - self.departed_replies
        return held / total if total else 0.0


def statistics(state: ServerState, stop_reason: str = "") -> Statistics:
    """Return the snapshot of a state."""
    replies = {key: node.accepted for key, node in state.nodes.items()}
    return Statistics(
        replies=MappingProxyType(replies),
        reasons=MappingProxyType(dict(state.reasons)),
        steps=state.iterates.step,
        mean_staleness=state.staleness / state.accepted if state.accepted else 0.0,
        departed_replies=state.accepted - sum(replies.values()),
        weights=MappingProxyType(_shares(state)),
        stop_reason=stop_reason,
    )


def _shares(state: ServerState) -> dict[int, float]:
    held = _weights(state)
    total = sum(held.values()) or 1.0
    return {node_id: held.get(node_id, 0.0) / total for node_id in state.nodes}


def _weights(state: ServerState) -> dict[int, float]:
    """Return the weights of the nodes that have a row."""
    weights = state.tables.parameters.view().weights.tolist()
    return {key: weights[node.row] for key, node in state.nodes.items() if node.row is not None}


def last_metrics(state: ServerState) -> list[tuple[Metrics, float]]:
    """Return the latest metrics of each node that has a row, with the row's weight."""
    held = _weights(state)
    return [(state.nodes[node_id].metrics, weight) for node_id, weight in held.items()]


@dataclass(frozen=True)
class RoundStart:
    """When a round began, and the totals at that time.

    Parameters
    ----------
    at : float
        Seconds of the clock.
    accepted, staleness : int
        Accepted replies, and the sum of their staleness.
    """

    at: ClockTime
    accepted: int = 0
    staleness: int = 0


def round_start(state: ServerState, now: float) -> RoundStart:
    """Return the start of a round that begins now."""
    return RoundStart(now, state.accepted, state.staleness)
