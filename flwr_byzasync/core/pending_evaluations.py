"""Evaluations by nodes that are under way: data, and what each event makes of them; no network."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr_byzasync.core.clock_time import ClockTime
from flwr_byzasync.core.metrics import Metrics

MAX_OUTSTANDING = 2
"""Maximum outstanding evaluation requests per node. A request queues behind training, so its
answer may arrive after the next round has ended; a node that owes more is too slow to be asked."""


@dataclass(frozen=True)
class EvaluationRequest:
    """A request that may still be answered.

    Parameters
    ----------
    server_round, node_id : int
        The round whose model is to be evaluated, and the node that was asked.
    sent_at : float
        Seconds of the clock.
    """

    server_round: int
    node_id: int
    sent_at: ClockTime


@dataclass(frozen=True)
class PendingEvaluations:
    """All evaluations under way; a checkpoint holds them.

    Parameters
    ----------
    requests : mapping of str to EvaluationRequest
        Unanswered requests by message id.
    answers : mapping of int to tuple of Metrics
        Answers by round, for rounds that are not complete.
    evaluators, non_evaluators : frozenset of int
        Nodes that have answered with metrics, and those whose first answer had none.
    polled_at : float
        When answers were last polled.
    """

    requests: Mapping[str, EvaluationRequest] = field(default_factory=dict)
    answers: Mapping[int, tuple[Metrics, ...]] = field(default_factory=dict)
    evaluators: frozenset[int] = frozenset()
    non_evaluators: frozenset[int] = frozenset()
    polled_at: ClockTime = float("-inf")


def candidates(pending: PendingEvaluations, connected: Iterable[int]) -> list[int]:
    """Return the connected nodes that can evaluate, as far as is known.

    A node whose first answer had no metrics is not among them: it has no evaluate function, or
    is Byzantine and then costs nobody another request.
    """
    return [node_id for node_id in connected if node_id not in pending.non_evaluators]


def busy_nodes(pending: PendingEvaluations) -> frozenset[int]:
    """Return the nodes that owe `MAX_OUTSTANDING` answers or more."""
    owed = Counter(request.node_id for request in pending.requests.values())
    return frozenset(node_id for node_id, count in owed.items() if count >= MAX_OUTSTANDING)


def on_requested(
    pending: PendingEvaluations, server_round: int, requests: Mapping[str, EvaluationRequest]
) -> PendingEvaluations:
    """Record the requests of one round by message id; without any the round has no evaluation."""
    if not requests:
        return pending
    return replace(
        pending,
        requests={**pending.requests, **requests},
        answers={**pending.answers, server_round: ()},
    )


def on_polled(pending: PendingEvaluations, now: float) -> PendingEvaluations:
    """Record when answers were polled."""
    return replace(pending, polled_at=now)


def on_answer(
    pending: PendingEvaluations, message_id: str, metrics: Metrics | None, lost: bool = False
) -> PendingEvaluations:
    """Apply an answer; None stands for one without metrics.

    Parameters
    ----------
    pending : PendingEvaluations
        With the request.
    message_id : str
        The request that was answered.
    metrics : mapping or None
        What the node reported.
    lost : bool, default False
        Whether the network lost the answer, which says nothing about the node.
    """
    request = pending.requests[message_id]
    pending = on_abandoned(pending, message_id)
    if metrics is not None:
        answers = (*pending.answers[request.server_round], metrics)
        return replace(
            pending,
            answers={**pending.answers, request.server_round: answers},
            evaluators=pending.evaluators | {request.node_id},
        )
    if request.node_id in pending.evaluators or lost:
        return pending
    return replace(pending, non_evaluators=pending.non_evaluators | {request.node_id})


def on_abandoned(pending: PendingEvaluations, message_id: str) -> PendingEvaluations:
    """Stop waiting for an answer."""
    requests = {key: each for key, each in pending.requests.items() if key != message_id}
    return replace(pending, requests=requests)


def on_other_run(pending: PendingEvaluations) -> PendingEvaluations:
    """Stop waiting for any answer: in another `flwr run` none can be pulled."""
    return replace(pending, requests={})


def complete_rounds(pending: PendingEvaluations) -> list[int]:
    """Return the rounds for which no answer is outstanding."""
    outstanding = {request.server_round for request in pending.requests.values()}
    return [server_round for server_round in pending.answers if server_round not in outstanding]


def on_round_closed(pending: PendingEvaluations, server_round: int) -> PendingEvaluations:
    """Forget the answers of a round."""
    answers = {key: each for key, each in pending.answers.items() if key != server_round}
    return replace(pending, answers=answers)
