"""Flower's round hooks over the same state: for its synchronous loop, wrappers and subclasses."""

from collections.abc import Callable, Iterable

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from flwr_byzasync._clock import clock_of
from flwr_byzasync.aggregators import Aggregator
from flwr_byzasync.checkpoints.files import Checkpoints
from flwr_byzasync.core.events import due_nodes, on_connected, on_sent, on_unsent
from flwr_byzasync.core.layout import statistics_of
from flwr_byzasync.core.policy import Policy
from flwr_byzasync.core.state import Rejected, initial_state
from flwr_byzasync.core.statistics import last_metrics
from flwr_byzasync.errors import ConfigError, Reason
from flwr_byzasync.optimizers import Optimizer
from flwr_byzasync.server.endpoint import Endpoint
from flwr_byzasync.server.evaluation import EvaluationSettings
from flwr_byzasync.server.metrics_aggregation import MetricsFn, aggregate_metrics
from flwr_byzasync.weights import WeightPolicy
from flwr_byzasync.wire.arrays import tensors_of
from flwr_byzasync.wire.keys import MessageFormat
from flwr_byzasync.wire.replies import metrics_of


class RoundHooks(Strategy):
    """The four hooks of Flower's strategies, over the state that arrivals drive as well.

    Under Flower's synchronous loop every connected node is asked in each round, and each reply
    makes a step. While `AsyncRobust.start` drives the run, it calls `aggregate_train` at the end
    of each round, without replies: the model is there already. So a subclass that overrides it,
    to save each round's model for example, works in both loops.
    """

    aggregator: Aggregator
    optimizer: Optimizer
    policy: Policy
    weights: WeightPolicy
    buffers: tuple[str, ...] | None
    device: torch.device
    checkpoints: Checkpoints | None
    evaluation: EvaluationSettings
    train_metrics_aggr_fn: MetricsFn | None
    _wire: MessageFormat
    _clock: Callable[[], float] | None

    def __init__(self) -> None:
        self._session: Endpoint | None = None
        self._arrivals = False
        self._handed_out: list[tuple[int, int, Message]] = []
        self._returned: dict[str, bytes] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make one query for every connected node.

        A model other than the one that `aggregate_train` returned, because a wrapper has added
        noise to it, is taken over.

        Raises
        ------
        ConfigError
            If the arrays are not of the model's names, shapes and dtypes, or there are
            `checkpoints`, an `early_stop` or `on_round_end`: only `start` knows of them.
        """
        for name in ("checkpoints", "early_stop", "on_round_end"):
            if getattr(self, name) is not None:
                legal = "None under Flower's synchronous loop, which knows nothing of it"
                raise ConfigError(name, getattr(self, name), legal, "call start, or leave it out")
        session = self._session
        if session is None or server_round == 1:
            session = self._begin(arrays, grid)
        elif _bytes(arrays) != self._returned:
            session.replace_model(arrays)
        connected = tuple(grid.get_node_ids())
        session.state = on_connected(session.state, connected)
        self._handed_out = []
        for node_id in due_nodes(session.state, connected, session.clock(), at_once=True):
            query = session.state.next_query_id + len(self._handed_out)
            message = session.query(node_id, query, server_round, dict(config))
            self._handed_out.append((node_id, query, message))
        return [message for _, _, message in self._handed_out]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies in, one step each; a node that did not reply has made a fault.

        Returns
        -------
        tuple
            The model, and what nodes reported last.
        """
        del server_round
        session = self._session
        if session is None:
            return None, None
        if not self._arrivals:
            self._receive(session, replies)
        metrics = aggregate_metrics(last_metrics(session.state), self.train_metrics_aggr_fn)
        arrays = session.arrays()
        self._returned = _bytes(arrays)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the questions to some of the connected nodes, by `fraction_evaluate`."""
        connected = tuple(grid.get_node_ids()) if self.evaluation.fraction else ()
        return self.evaluation.requests(server_round, arrays, config, connected, self._wire)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the metrics of the replies as one record: the median, unless told otherwise."""
        del server_round
        return self.evaluation.result(map(metrics_of, replies))

    def _end_round(self, server_round: int) -> tuple[ArrayRecord, MetricRecord | None]:
        """Have a subclass see the end of a round that arrivals made, and what it makes of it."""
        arrays, metrics = self.aggregate_train(server_round, ())
        session = self._session
        assert session is not None
        if arrays is None:
            return session.arrays(), metrics
        if _bytes(arrays) != self._returned:
            session.replace_model(arrays)
        return arrays, metrics

    def _receive(self, session: Endpoint, replies: Iterable[Message]) -> None:
        now = session.clock()
        for node_id, query, message in self._handed_out:
            message_id = message.metadata.message_id
            if message_id:
                session.state = on_sent(session.state, node_id, message_id, query, now)
            else:
                session.state = on_unsent(session.state, node_id, now)
        self._handed_out = []
        for reply in replies:
            session.receive(reply.metadata.reply_to_message_id, reply)
        for message_id in list(session.state.in_flight):
            session.apply(message_id, Rejected(Reason.EXPIRED))

    def _begin(self, initial_arrays: ArrayRecord, grid: Grid) -> Endpoint:
        if not isinstance(initial_arrays, ArrayRecord):
            fix = "pass for example ArrayRecord(model.state_dict())"
            raise ConfigError("initial_arrays", type(initial_arrays), "an ArrayRecord", fix)
        tensors = tensors_of(initial_arrays)
        state = initial_state(
            tensors,
            statistics_of(tensors) if self.buffers is None else self.buffers,
            self.aggregator,
            self.optimizer,
            self.policy,
            self.device,
            self.weights,
        )
        clock = self._clock or clock_of(grid)[0]
        self._session = Endpoint(state, self._wire, self.device, clock)
        return self._session


def _bytes(arrays: ArrayRecord) -> dict[str, bytes]:
    """Return what a record holds: whoever changes a model may do so in place."""
    return {name: array.data for name, array in arrays.items()}
