"""Federated evaluation: some nodes are asked how good the model is, while all go on training."""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from logging import getLogger

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flwr_byzasync.errors import ConfigError, check_integer, check_number
from flwr_byzasync.progress import median_metrics
from flwr_byzasync.pulls import Pulls
from flwr_byzasync.records import METRICS, ROUND, Wire
from flwr_byzasync.replies import lost_on_the_way, metrics_of
from flwr_byzasync.state import Metrics

logger = getLogger("flwr")

CLAIMED = "num-examples"
"""What Flower weights metrics by, and leaves out of them. A node says it, so nothing is."""
MOST_OWED = 2
"""Answers that a node may owe and still be asked: a question waits behind the query that its node
works on, so that the answer comes after the next round's end; beyond that a node is too slow."""
MetricsFn = Callable[[list[RecordDict], str], MetricRecord]


def aggregated(
    heard: Sequence[tuple[Metrics, float]], function: MetricsFn | None
) -> MetricRecord | None:
    """Return the metrics of several nodes as one record.

    Parameters
    ----------
    heard : sequence of (mapping, float)
        Finite numbers that each node reported, and its weight.
    function : callable or None
        As Flower's strategies take it, ``(records, "num-examples") -> MetricRecord``; None for
        the weighted median, which fewer than half of the weight cannot move beyond the others.

    Returns
    -------
    MetricRecord or None
        None if nothing was reported, or the function raised or returned no MetricRecord, which
        is logged.
    """
    heard = [(metrics, weight) for metrics, weight in heard if metrics or function is None]
    if not heard:
        return None
    if function is None:
        medians = median_metrics(heard)
        medians.pop(CLAIMED, None)
        return MetricRecord(dict(medians)) if medians else None
    contents = [RecordDict({METRICS: _record(metrics)}) for metrics, _ in heard]
    try:
        metrics = function(contents, CLAIMED)
    except Exception as error:
        # What a node leaves out may break the function: that must not end a run.
        logger.warning("The function that aggregates metrics raised %r.", error)
        return None
    if not isinstance(metrics, MetricRecord):
        given = type(metrics).__name__
        logger.warning("The function that aggregates metrics returned %s, no MetricRecord.", given)
        return None
    return metrics


def mean_metrics(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Return the mean of each metric over the nodes that report it, each node counting once.

    To be passed as `train_metrics_aggr_fn` or `evaluate_metrics_aggr_fn`. One liar moves it
    anywhere.
    """
    del weighted_by_key
    told: dict[str, list[float]] = {}
    for content in contents:
        for name, value in content.metric_records[METRICS].items():
            if not isinstance(value, list):
                told.setdefault(name, []).append(float(value))
    return MetricRecord({name: sum(values) / len(values) for name, values in told.items()})


def _record(metrics: Metrics) -> MetricRecord:
    return MetricRecord({k: list(v) if isinstance(v, tuple) else v for k, v in metrics.items()})


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
    _looked: float = float("-inf")
    _asked: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    _heard: dict[int, list[Metrics]] = field(default_factory=dict)
    _able: set[int] = field(default_factory=set)
    _unable: set[int] = field(default_factory=set)
    _warned: bool = False

    def begin(self, server_round: int, arrays: ArrayRecord, connected: Collection[int]) -> None:
        """Ask some nodes how good the model is after a round.

        A node whose first answer was no metrics is not asked again: it has no evaluate function,
        or lies, and then it costs nobody else a question.
        """
        owed = Counter(node_id for _, node_id, _ in self._asked.values())
        busy = [node_id for node_id, answers in owed.items() if answers >= MOST_OWED]
        able = [node_id for node_id in connected if node_id not in self._unable]
        for message in self.settings.questions(
            server_round, arrays, self.config, able, self.wire, busy
        ):
            try:
                sent = [key for key in self.grid.push_messages([message]) if key]
            except Exception:
                continue
            if sent:
                self._asked[str(sent[0])] = server_round, message.metadata.dst_node_id, self.clock()
                self._heard.setdefault(server_round, [])

    def take_in(self, connected: Collection[int]) -> None:
        """Take in the answers that are there; whoever left or is late is not waited for."""
        if not self._heard or self.clock() < self._looked + self.every:
            return
        self._looked = self.clock()
        self.pulls.begin_pass(self._asked)
        for message_id, (server_round, node_id, since) in list(self._asked.items()):
            try:
                replies = self.pulls.look(message_id, node_id) or []
            except Exception:
                replies = []
            gone = node_id not in connected or self.clock() - since > self.limit
            if replies or gone:
                del self._asked[message_id]
            for reply in replies[:1]:
                self._hear(server_round, node_id, reply)
        waited_for = {server_round for server_round, _, _ in self._asked.values()}
        for server_round in [r for r in self._heard if r not in waited_for]:
            self._close(server_round, self._heard.pop(server_round))

    @property
    def under_way(self) -> bool:
        """Whether somebody has not answered yet."""
        return bool(self._asked)

    def _hear(self, server_round: int, node_id: int, reply: Message) -> None:
        told = metrics_of(reply)
        if told is not None:
            self._heard[server_round].append(told)
            self._able.add(node_id)
        elif node_id not in self._able and not lost_on_the_way(reply):
            self._unable.add(node_id)

    def _close(self, server_round: int, told: list[Metrics]) -> None:
        metrics, used = self.settings.result(told), len(told)
        if metrics is not None:
            logger.info("[ROUND %d] evaluated by %d nodes: %s", server_round, used, dict(metrics))
            self.report(server_round, metrics)
        elif self._unable and not self._able and not self._warned:
            self._warned = True
            logger.warning(
                "No node could evaluate the model in round %d: those asked are not asked again. "
                "Register an evaluate function in the ClientApp, or pass fraction_evaluate=0.0.",
                server_round,
            )
