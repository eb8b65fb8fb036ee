"""What a run tells about itself: a snapshot for programs and one line a round for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType

import torch

from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.errors import Reason
from flwr_byzasync.state import Metrics, ServerState


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
    former: int = 0
    weights: Mapping[int, float] = field(default_factory=dict)
    gave_up: str = ""

    @property
    def accepted(self) -> int:
        """Accepted replies of all nodes."""
        return self.former + sum(self.replies.values())

    @property
    def rejected(self) -> int:
        """Replies that were not used, for any reason."""
        return sum(self.reasons.values())

    def share(self, node_ids: set[int]) -> float:
        """Return the share of all accepted replies that some nodes made, in [0, 1]."""
        held = sum(count for node_id, count in self.replies.items() if node_id in node_ids)
        total = self.accepted - self.former
        return held / total if total else 0.0


def statistics(state: ServerState, gave_up: str = "") -> Statistics:
    """Return the snapshot of a state."""
    replies = {key: node.accepted for key, node in state.nodes.items()}
    return Statistics(
        replies=MappingProxyType(replies),
        reasons=MappingProxyType(dict(state.reasons)),
        steps=state.iterates.step,
        mean_staleness=state.staleness / state.accepted if state.accepted else 0.0,
        former=state.accepted - sum(replies.values()),
        weights=MappingProxyType(_shares(state)),
        gave_up=gave_up,
    )


def _shares(state: ServerState) -> dict[int, float]:
    held = _weights(state)
    total = sum(held.values()) or 1.0
    return {node_id: held.get(node_id, 0.0) / total for node_id in state.nodes}


def _weights(state: ServerState) -> dict[int, float]:
    """Return the weights of the nodes that have a row."""
    weights = state.tables.parameters.view().weights.tolist()
    return {key: weights[node.row] for key, node in state.nodes.items() if node.row is not None}


def heard(state: ServerState) -> list[tuple[Metrics, float]]:
    """Return what each node that has a row reported last, and what its row weighs."""
    held = _weights(state)
    return [(state.nodes[node_id].metrics, weight) for node_id, weight in held.items()]


def median_metrics(heard: Sequence[tuple[Metrics, float]]) -> dict[str, float | list[float]]:
    """Return the weighted median of each metric that most of the weight reported.

    Parameters
    ----------
    heard : sequence of (mapping, float)
        What each node reported, and its weight. Of a metric that is a list, the median of each
        of its numbers, over the lists of the length that most of the weight has.
    """
    total = sum(weight for _, weight in heard)
    result: dict[str, float | list[float]] = {}
    for name in sorted({name for metrics, _ in heard for name in metrics}):
        told: dict[int, list[tuple[tuple[float, ...], float]]] = {}
        for metrics, weight in heard:
            value = metrics.get(name)
            if isinstance(value, tuple):
                told.setdefault(len(value), []).append((value, weight))
            elif value is not None:
                told.setdefault(-1, []).append(((value,), weight))
        for length, group in told.items():
            if 2 * sum(weight for _, weight in group) > total:
                values = torch.tensor([value for value, _ in group], dtype=torch.float64)
                weights = torch.tensor([weight for _, weight in group])
                median = CoordinateWiseMedian()(values, weights).tolist()
                result[name] = median[0] if length == -1 else median
    return result


@dataclass(frozen=True)
class Mark:
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


def mark(state: ServerState, now: float) -> Mark:
    """Return what has been reached."""
    return Mark(now, state.accepted, state.staleness)


def round_line(
    server_round: int,
    num_rounds: int,
    since: Mark,
    state: ServerState,
    metrics: Mapping[str, object] | None,
    now: float,
) -> str:
    """Return a round's replies and their rate, metrics, staleness, rejected and time left."""
    fresh, seconds = state.accepted - since.accepted, now - since.at
    staleness = (state.staleness - since.staleness) / max(fresh, 1)
    rejected = sum(state.reasons.values())
    # By the pace of this round alone: the first one waited for the clients to start.
    try:
        left = str(timedelta(seconds=round(seconds * (num_rounds - server_round))))
    except OverflowError:  # a run that is meant to go on until it is stopped
        left = "years"
    parts = [f"{state.accepted} replies ({fresh / max(seconds, 1e-9):.1f}/s)"]
    if metrics:
        parts.append(", ".join(f"{k} {_short(v)}" for k, v in metrics.items()))
    parts += [f"staleness {staleness:.1f}", f"rejected {rejected}", f"{left} left"]
    return f"[ROUND {server_round}/{num_rounds}] " + " | ".join(parts)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
