"""Federated evaluation: some nodes evaluate the model while all go on training."""

import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from logging import getLogger

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flwr_byzasync._checks import check_integer, check_number, coerce_numbers
from flwr_byzasync._clock import network_errors
from flwr_byzasync._printable import printable_metrics
from flwr_byzasync.core.metrics import Metrics
from flwr_byzasync.core.pending_evaluations import (
    EvaluationRequest,
    PendingEvaluations,
    busy_nodes,
    candidates,
    complete_rounds,
    on_abandoned,
    on_answer,
    on_polled,
    on_requested,
    on_round_closed,
)
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.server.metrics_aggregation import MetricsFn, aggregate_metrics
from flwr_byzasync.server.poller import ReplyPoller
from flwr_byzasync.wire.keys import ROUND, MessageFormat
from flwr_byzasync.wire.replies import lost_on_the_way, metrics_of

logger = getLogger("flwr")


@dataclass(frozen=True)
class EvaluationSettings:
    """Which nodes evaluate, and how their metrics are aggregated.

    Parameters
    ----------
    fraction : float
        Share of the connected nodes in [0, 1]; with 0 nobody evaluates.
    min_nodes : int
        Nodes that evaluate at least, >= 0; with fewer connected nobody does.
    function : callable or None
        See `aggregate_metrics`.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    fraction: float = 0.0
    min_nodes: int = 2
    function: MetricsFn | None = None

    def __post_init__(self) -> None:
        coerce_numbers(self)
        fix = "pass for example fraction_evaluate=0.5, or 0.0 for no evaluation by nodes"
        check_number("fraction_evaluate", self.fraction, low=0, high=1, fix=fix)
        fix = "pass for example min_evaluate_nodes=2"
        check_integer("min_evaluate_nodes", self.min_nodes, low=0, fix=fix)
        if self.function is not None and not callable(self.function):
            legal, fix = "a function, or None for the weighted median", "leave it out"
            raise ConfigError("evaluate_metrics_aggr_fn", self.function, legal, fix)

    def requests(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        connected: Collection[int],
        message_format: MessageFormat,
        busy: Collection[int] = (),
    ) -> list[Message]:
        """Return the messages of one round's evaluation, to nodes drawn by its number.

        Parameters
        ----------
        server_round : int
            The round.
        arrays : ArrayRecord
            The whole model.
        config : ConfigRecord
            The user's; copied.
        connected, busy : collection of int
            The nodes to draw from, and those that are skipped if drawn.
        message_format : MessageFormat
            Names of the records.
        """
        here = list(connected)
        count = max(int(len(here) * self.fraction), self.min_nodes)
        if not self.fraction or count > len(here):
            return []
        chosen = random.Random(server_round).sample(here, count)
        messages = []
        for node_id in chosen:
            if node_id not in busy:
                content = RecordDict({message_format.arrayrecord_key: arrays})
                content[message_format.configrecord_key] = ConfigRecord(
                    {**config, ROUND: server_round}
                )
                kind = MessageType.EVALUATE
                messages.append(Message(content, dst_node_id=node_id, message_type=kind))
        return messages

    def result(self, answers: Iterable[Metrics | None]) -> MetricRecord | None:
        """Return the metrics of some nodes as one record; None stands for a node without any.

        Every node counts once: its number of examples is a claim.
        """
        return aggregate_metrics(
            [(each, 1.0) for each in answers if each is not None], self.function
        )


@dataclass
class Evaluations:
    """Sends the evaluation requests of one run, and polls for the answers.

    Parameters
    ----------
    settings : EvaluationSettings
        Which nodes evaluate.
    grid : Grid
        The network; its exceptions are survived: see `network_errors`.
    config : ConfigRecord
        Sent with each request.
    message_format : MessageFormat
        Names of the records.
    clock : callable
        Seconds of a monotonic clock.
    timeout : float
        Seconds after which an answer is not waited for.
    report : callable
        ``(round, MetricRecord)``, called when a round's answers are complete.
    poller : ReplyPoller
        Its own: a pull that hangs delays no reply to a query.
    poll_interval : float
        Seconds between two polls.
    pending : PendingEvaluations
        The evaluations under way.
    """

    settings: EvaluationSettings
    grid: Grid
    config: ConfigRecord
    message_format: MessageFormat
    clock: Callable[[], float]
    timeout: float
    report: Callable[[int, MetricRecord], None]
    poller: ReplyPoller[Message]
    poll_interval: float = 0.1
    pending: PendingEvaluations = field(default_factory=PendingEvaluations)
    _warned: bool = False

    def start(self, server_round: int, arrays: ArrayRecord, connected: Collection[int]) -> None:
        """Ask some nodes to evaluate the model of a round, unless they were asked before."""
        if server_round in self.pending.answers:
            return  # before the run was resumed
        requests = {}
        for message in self.settings.requests(
            server_round,
            arrays,
            self.config,
            candidates(self.pending, connected),
            self.message_format,
            busy_nodes(self.pending),
        ):
            try:
                sent = [key for key in self.grid.push_messages([message]) if key]
            except network_errors(self.grid):
                continue
            if sent:
                node_id = message.metadata.dst_node_id
                requests[str(sent[0])] = EvaluationRequest(server_round, node_id, self.clock())
        self.pending = on_requested(self.pending, server_round, requests)

    def poll(self, connected: Collection[int]) -> None:
        """Apply the answers that have arrived; give up on nodes that are late or gone."""
        if not self.in_progress or self.clock() < self.pending.polled_at + self.poll_interval:
            return
        self.pending = on_polled(self.pending, self.clock())
        self.poller.begin_pass(self.pending.requests)
        for message_id, request in self.pending.requests.items():
            try:
                replies = self.poller.poll(message_id, request.node_id) or []
            except network_errors(self.grid):
                replies = []
            late = self.clock() - request.sent_at > self.timeout
            if replies:
                metrics, lost = metrics_of(replies[0]), lost_on_the_way(replies[0])
                self.pending = on_answer(self.pending, message_id, metrics, lost)
            elif late or request.node_id not in connected:
                self.pending = on_abandoned(self.pending, message_id)
        for server_round in complete_rounds(self.pending):
            self._close(server_round)

    @property
    def in_progress(self) -> bool:
        """Whether the answers of some round are not complete."""
        return bool(self.pending.answers)

    def _close(self, server_round: int) -> None:
        answers = self.pending.answers[server_round]
        self.pending = on_round_closed(self.pending, server_round)
        metrics = self.settings.result(answers)
        if metrics is not None:
            shown = printable_metrics(metrics)
            logger.info("[ROUND %d] evaluated by %d nodes: %s", server_round, len(answers), shown)
            self.report(server_round, metrics)
        elif self.pending.non_evaluators and not self.pending.evaluators and not self._warned:
            self._warned = True
            logger.warning(
                "No node could evaluate the model in round %d; the nodes asked are not asked "
                "again. Register an evaluate function in the ClientApp, or pass "
                "fraction_evaluate=0.0.",
                server_round,
            )
