"""Questions to nodes how good the model is, and what came of them so far: data, no network."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr_byzasync.core.metrics import Metrics


@dataclass(frozen=True)
class EvaluationRequest:
    """A question that may still be answered.

    Parameters
    ----------
    server_round, node_id : int
        The round whose model is asked about, and who was asked.
    since : float
        Seconds of the clock.
    """

    server_round: int
    node_id: int
    sent_at: float


@dataclass(frozen=True)
class PendingEvaluations:
    """All that are under way; a run that goes on goes on with them.

    Parameters
    ----------
    asked : mapping of str to Question
        By message id.
    heard : mapping of int to tuple of Metrics
        Answers by round, of rounds that are not complete.
    able, unable : frozenset of int
        Nodes that have answered with metrics, and those whose first answer was none.
    looked : float
        When answers were looked for last.
    """

    requests: Mapping[str, EvaluationRequest] = field(default_factory=dict)
    answers: Mapping[int, tuple[Metrics, ...]] = field(default_factory=dict)
    evaluators: frozenset[int] = frozenset()
    non_evaluators: frozenset[int] = frozenset()
    polled_at: float = float("-inf")
