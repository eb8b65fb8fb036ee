"""Flower's four round hooks over the state that arrivals drive as well."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from flwr_byzasync._clock import clock_of
from flwr_byzasync.core.events import due_nodes, on_sent, on_unsent
from flwr_byzasync.core.membership import on_connected
from flwr_byzasync.core.state import Rejected
from flwr_byzasync.core.statistics import last_metrics
from flwr_byzasync.errors import Reason
from flwr_byzasync.server.endpoint import Endpoint
from flwr_byzasync.server.metrics_aggregation import aggregate_metrics
from flwr_byzasync.server.settings import StrategySettings
from flwr_byzasync.wire.replies import metrics_of


class RoundHooks:
    """What `AsyncRobust` does in the hooks of Flower's synchronous loop.

    Every connected node is queried in each round, and each reply makes a step.

    Parameters
    ----------
    settings : StrategySettings
        The strategy's.

    Attributes
    ----------
    endpoint : Endpoint or None
        The current or last run; None before the first.
    """

    def __init__(self, settings: StrategySettings) -> None:
        self.settings = settings
        self.endpoint: Endpoint | None = None
        self._arrivals = False
        self._sent: list[tuple[int, int, Message]] = []
        self._returned: dict[str, bytes] = {}

    def begin(self, initial_arrays: ArrayRecord, grid: Grid) -> Endpoint:
        """Return the endpoint of a new run over a grid, and keep it."""
        self.endpoint = self.settings.endpoint(initial_arrays, clock_of(grid)[0])
        return self.endpoint

    @contextmanager
    def driven_by_arrivals(self) -> Iterator[None]:
        """Let `AsyncRobust.start` drive the run: replies are applied already, hooks only report."""
        self._arrivals = True
        try:
            yield
        finally:
            self._arrivals = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return one query for every connected node.

        Arrays other than those that `aggregate_train` returned replace the model: a wrapper has
        changed them.
        """
        endpoint = self.endpoint
        if endpoint is None or server_round == 1:
            endpoint = self.begin(arrays, grid)
        elif _bytes(arrays) != self._returned:
            endpoint.replace_model(arrays)
        connected = tuple(grid.get_node_ids())
        endpoint.state = on_connected(endpoint.state, connected)
        self._sent = []
        for node_id in due_nodes(endpoint.state, connected, endpoint.clock(), at_once=True):
            query = endpoint.state.next_query_id + len(self._sent)
            message = endpoint.query(node_id, query, server_round, dict(config))
            self._sent.append((node_id, query, message))
        return [message for _, _, message in self._sent]

    def aggregate_train(
        self, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Apply each reply as one step; a missing reply counts as a fault."""
        endpoint = self.endpoint
        if endpoint is None:
            return None, None
        if not self._arrivals:
            self._receive(endpoint, replies)
        function = self.settings.train_metrics_aggr_fn
        metrics = aggregate_metrics(last_metrics(endpoint.state), function)
        arrays = endpoint.arrays()
        self._returned = _bytes(arrays)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return evaluation requests to some of the connected nodes."""
        evaluation = self.settings.evaluation
        connected = tuple(grid.get_node_ids()) if evaluation.fraction else ()
        message_format = self.settings.message_format
        return evaluation.requests(server_round, arrays, config, connected, message_format)

    def aggregate_evaluate(self, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the metrics of the replies as one record."""
        return self.settings.evaluation.result(map(metrics_of, replies))

    def after_aggregation(self, arrays: ArrayRecord | None) -> ArrayRecord:
        """Return the model at the end of a round, replaced if a subclass has changed it."""
        endpoint = self.endpoint
        assert endpoint is not None
        if arrays is None:
            return endpoint.arrays()
        if _bytes(arrays) != self._returned:
            endpoint.replace_model(arrays)
        return arrays

    def _receive(self, endpoint: Endpoint, replies: Iterable[Message]) -> None:
        now = endpoint.clock()
        for node_id, query, message in self._sent:
            message_id = message.metadata.message_id
            if message_id:
                endpoint.state = on_sent(endpoint.state, node_id, message_id, query, now)
            else:
                endpoint.state = on_unsent(endpoint.state, node_id, now)
        self._sent = []
        received = list(replies)
        # Flower passes replies without the ids that it pulled, so all that says whose a reply is
        # is text of its client. A message that two replies claim to answer is nobody's.
        claims = Counter(reply.metadata.reply_to_message_id for reply in received)
        for reply in received:
            message_id = reply.metadata.reply_to_message_id
            if claims[message_id] == 1:
                endpoint.receive(message_id, reply)
            else:
                endpoint.apply("", Rejected(Reason.UNSOLICITED))
        for message_id in list(endpoint.state.in_flight):
            endpoint.apply(message_id, Rejected(Reason.EXPIRED))


def _bytes(arrays: ArrayRecord) -> dict[str, bytes]:
    """Return the content of a record: a model may be changed in place."""
    return {name: array.data for name, array in arrays.items()}
