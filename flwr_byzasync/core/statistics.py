"""What a run tells about itself: a snapshot for programs and one line a round for people."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

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
    weights : mapping of int to float
        Share of the weight that each node's row had in the last direction, in [0, 1]: that of
        its replies where weights are counts without a cap. 0 without a row.
    reasons : mapping of Reason to int
        Replies that were not used.
    steps : int
        Server steps.
    mean_staleness : float
        Steps between sending a query and receiving its reply, averaged over accepted replies.
    former : int
        Accepted replies of nodes that a run no longer knew when it went on among other nodes.
    gave_up : str
        Why the run ended before its last round, as the log says; empty if it did not. An
        `EarlyStop` is no giving up.
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
        """Replies that were not used, for any reason."""
        return sum(self.reasons.values())

    def share(self, node_ids: set[int]) -> float:
        """Return the share of all accepted replies that some nodes made, in [0, 1]."""
        held = sum(count for node_id, count in self.replies.items() if node_id in node_ids)
        total = self.accepted - self.departed_replies
        return held / total if total else 0.0


def statistics(state: ServerState, gave_up: str = "") -> Statistics:
    """Return the snapshot of a state."""
    replies = {key: node.accepted for key, node in state.nodes.items()}
    return Statistics(
        replies=MappingProxyType(replies),
        reasons=MappingProxyType(dict(state.reasons)),
        steps=state.iterates.step,
        mean_staleness=state.staleness / state.accepted if state.accepted else 0.0,
        departed_replies=state.accepted - sum(replies.values()),
        weights=MappingProxyType(_shares(state)),
        stop_reason=gave_up,
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
    """Return what each node that has a row reported last, and what its row weighs."""
    held = _weights(state)
    return [(state.nodes[node_id].metrics, weight) for node_id, weight in held.items()]


@dataclass(frozen=True)
class RoundStart:
    """What had been reached when a round began.

    Parameters
    ----------
    at : float
        Seconds of the clock.
    accepted, staleness : int
        Accepted replies, and the sum of their staleness.
    """

    at: float
    accepted: int = 0
    staleness: int = 0


def round_start(state: ServerState, now: float) -> RoundStart:
    """Return what has been reached."""
    return RoundStart(now, state.accepted, state.staleness)
