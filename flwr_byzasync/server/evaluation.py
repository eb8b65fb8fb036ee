"""Federated evaluation: some nodes are asked how good the model is, while all go on training."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from logging import getLogger

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flwr_byzasync._checks import check_integer, check_number, coerce_numbers
from flwr_byzasync.core.metrics import Metrics
from flwr_byzasync.core.pending_evaluations import Question, Questions
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.server.metrics_aggregation import MetricsFn, aggregated
from flwr_byzasync.server.poller import Pulls
from flwr_byzasync.wire.keys import ROUND, Wire
from flwr_byzasync.wire.replies import lost_on_the_way, metrics_of

logger = getLogger("flwr")

MOST_OWED = 2
"""Answers that a node may owe and still be asked: a question waits behind the query that its node
works on, so that the answer comes after the next round's end; beyond that a node is too slow."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Who is asked to evaluate, and what is made of the answers.

    Parameters
    ----------
    fraction : float
        Share of the connected nodes in [0, 1]; 0 asks nobody.
    least : int
        Nodes that are asked at least, >= 0; nobody is if fewer are connected.
    function : callable or None
        See `aggregated`.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    fraction: float = 0.0
    least: int = 2
    function: MetricsFn | None = None

    def __post_init__(self) -> None:
        coerce_numbers(self)
        fix = "pass for example fraction_evaluate=0.5, or 0.0 for no evaluation by nodes"
        check_number("fraction_evaluate", self.fraction, low=0, high=1, fix=fix)
        fix = "pass for example min_evaluate_nodes=2"
        check_integer("min_evaluate_nodes", self.least, low=0, fix=fix)
        if self.function is not None and not callable(self.function):
            legal, fix = "a function, or None for the weighted median", "leave it out"
            raise ConfigError("evaluate_metrics_aggr_fn", self.function, legal, fix)

    def questions(
        self,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        connected: Collection[int],
        wire: Wire,
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
            Who is there, and who is not to be asked.
        wire : Wire
            How messages look.
        """
        here = list(connected)
        count = max(int(len(here) * self.fraction), self.least)
        if not self.fraction or count > len(here):
            return []
        chosen = random.Random(server_round).sample(here, count)
        messages = []
        for node_id in chosen:
            if node_id not in busy:
                content = RecordDict({wire.arrayrecord_key: arrays})
                content[wire.configrecord_key] = ConfigRecord({**config, ROUND: server_round})
                kind = MessageType.EVALUATE
                messages.append(Message(content, dst_node_id=node_id, message_type=kind))
        return messages

    def result(self, told: Iterable[Metrics | None]) -> MetricRecord | None:
        """Return what some nodes told as one; None stands for one that told nothing.

        Every node counts once: what it says of its number of examples is not believed.
        """
        heard = [(metrics, 1.0) for metrics in told if metrics is not None]
        return aggregated(heard, self.function)


@dataclass
class Evaluations:
    """The evaluations of one run that are under way.

    Parameters
    ----------
    settings : EvaluationSettings
        Who is asked.
    grid : Grid
        The network; whatever it raises is survived.
    config : ConfigRecord
        Sent with each question.
    wire : Wire
        How messages look.
    clock : callable
        Seconds of a monotonic clock.
    limit : float
        Seconds after which nobody is waited for.
    report : callable
        ``(round, MetricRecord)``, called when a round's answers are complete.
    pulls : Pulls
        Of their own: one that hangs holds up no reply to a query.
    every : float
        Seconds between two looks at the answers.
    questions : Questions
        What is under way.
    """

    settings: EvaluationSettings
    grid: Grid
    config: ConfigRecord
    wire: Wire
    clock: Callable[[], float]
    limit: float
    report: Callable[[int, MetricRecord], None]
    pulls: Pulls[Message]
    every: float = 0.1
    questions: Questions = field(default_factory=Questions)
    _warned: bool = False

    def begin(self, server_round: int, arrays: ArrayRecord, connected: Collection[int]) -> None:
        """Ask some nodes how good the model is after a round.

        A node whose first answer was no metrics is not asked again: it has no evaluate function,
        or lies, and then it costs nobody else a question.
        """
        under_way = self.questions
        if server_round in under_way.heard:
            return  # it was asked before the run was gone on with
        owed = Counter(question.node_id for question in under_way.asked.values())
        busy = [node_id for node_id, answers in owed.items() if answers >= MOST_OWED]
        able = [node_id for node_id in connected if node_id not in under_way.unable]
        asked = dict(under_way.asked)
        for message in self.settings.questions(
            server_round, arrays, self.config, able, self.wire, busy
        ):
            try:
                sent = [key for key in self.grid.push_messages([message]) if key]
            except Exception:
                continue
            if sent:
                node_id = message.metadata.dst_node_id
                asked[str(sent[0])] = Question(server_round, node_id, self.clock())
        if len(asked) > len(under_way.asked):
            heard = {**under_way.heard, server_round: ()}
            self.questions = replace(under_way, asked=asked, heard=heard)

    def take_in(self, connected: Collection[int]) -> None:
        """Take in the answers that are there; whoever left or is late is not waited for."""
        if not self.under_way or self.clock() < self.questions.looked + self.every:
            return
        self.questions = replace(self.questions, looked=self.clock())
        self.pulls.begin_pass(self.questions.asked)
        for message_id, question in self.questions.asked.items():
            try:
                replies = self.pulls.look(message_id, question.node_id) or []
            except Exception:
                replies = []
            late = self.clock() - question.since > self.limit
            if replies or late or question.node_id not in connected:
                self._strike_out(message_id)
            for reply in replies[:1]:
                self._hear(question, reply)
        waited_for = {question.server_round for question in self.questions.asked.values()}
        for server_round in self.questions.heard:
            if server_round not in waited_for:
                self._close(server_round)

    @property
    def under_way(self) -> bool:
        """Whether the answers about some round are not complete."""
        return bool(self.questions.heard)

    def _strike_out(self, message_id: str) -> None:
        asked = {key: line for key, line in self.questions.asked.items() if key != message_id}
        self.questions = replace(self.questions, asked=asked)

    def _hear(self, question: Question, reply: Message) -> None:
        questions, node_id, told = self.questions, question.node_id, metrics_of(reply)
        if told is not None:
            answers = (*questions.heard[question.server_round], told)
            heard = {**questions.heard, question.server_round: answers}
            self.questions = replace(questions, heard=heard, able=questions.able | {node_id})
        elif node_id not in questions.able and not lost_on_the_way(reply):
            self.questions = replace(questions, unable=questions.unable | {node_id})

    def _close(self, server_round: int) -> None:
        questions = self.questions
        told = questions.heard[server_round]
        heard = {key: answers for key, answers in questions.heard.items() if key != server_round}
        self.questions = replace(questions, heard=heard)
        metrics, used = self.settings.result(told), len(told)
        if metrics is not None:
            logger.info("[ROUND %d] evaluated by %d nodes: %s", server_round, used, dict(metrics))
            self.report(server_round, metrics)
        elif questions.unable and not questions.able and not self._warned:
            self._warned = True
            logger.warning(
                "No node could evaluate the model in round %d: those asked are not asked again. "
                "Register an evaluate function in the ClientApp, or pass fraction_evaluate=0.0.",
                server_round,
            )
