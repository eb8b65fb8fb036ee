"""Arrival loop: query every node that is due, process replies as they arrive, sleep when idle."""

from collections.abc import Callable, Collection, Mapping
from logging import getLogger

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_byzasync._clock import clock_of, network_errors
from flwr_byzasync.core.events import (
    due_nodes,
    on_all_quarantined,
    on_clock,
    on_clock_paused,
    on_sent,
    on_unsent,
)
from flwr_byzasync.core.membership import on_connected
from flwr_byzasync.core.quorum import quorum_size
from flwr_byzasync.core.state import Rejected
from flwr_byzasync.core.stopping import stop_reason
from flwr_byzasync.errors import Reason
from flwr_byzasync.server.endpoint import Endpoint
from flwr_byzasync.server.poller import poller_of

logger = getLogger("flwr")

SIGNAL_POLL_SECONDS = 1.0
"""Longest time that a signal waits, whatever the poll interval."""
CLOCK_JUMP_SECONDS = 60.0
"""A sleep that took this much longer than asked means that the machine was suspended."""


class ArrivalLoop:
    """Drives an endpoint over a grid.

    Messages are pushed and pulled one at a time. A grid may leave a refused message out of the
    ids that it returns, so positions mean nothing; one reply that cannot be decompressed makes a
    pull raise after the SuperLink has deleted everything that it returned; one whose upload
    stalls makes a pull hang; and a reply's metadata is written by the client. The id that was
    pulled is the only identity there is.

    Parameters
    ----------
    endpoint : Endpoint
        State and messages of the run.
    grid : Grid
        Flower's network. Its clock is used where it has one. Exceptions of its calls are logged
        and survived if they may be the network's: see `network_errors`.
    config : mapping
        The user's train config, sent with every query.
    timeout : float
        Longest time in seconds without an accepted reply, and before the first step.
    poll_interval : float
        Seconds between two polls when nothing arrived.
    on_idle : callable
        Called after each reply and before each sleep, when the state is consistent.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        grid: Grid,
        config: Mapping[str, object],
        timeout: float,
        poll_interval: float,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self.endpoint = endpoint
        self.connected: tuple[int, ...] = ()
        self._grid, self._config, self._timeout = grid, config, timeout
        self._clock, self._sleep = endpoint.clock, clock_of(grid)[1]
        self._poll_interval, self._on_idle = poll_interval, on_idle
        self._poller, self._network_errors = poller_of(grid), network_errors(grid)
        self._round = 1
        self._network_fails = False

    def wait_for_nodes(self, count: int) -> bool:
        """Wait until `count` nodes are connected; return False and log an error after `timeout`."""
        logged, deadline = -1, self._clock() + self._timeout
        while len(self.refresh_nodes()) < count:
            if logged != len(self.connected):
                logged = len(self.connected)
                logger.info("Waiting for nodes: %d of %d are connected.", logged, count)
            if self._clock() >= deadline:
                self.endpoint.stop_reason = f"{logged} of {count} nodes connected in time"
                logger.error(
                    "Only %d of %d nodes connected within timeout=%g seconds: start more nodes, "
                    "or pass a smaller min_available_nodes or Quorum(nodes=...).",
                    logged,
                    count,
                    self._timeout,
                )
                return False
            self._sleep(min(1.0, 10 * self._poll_interval))
        return True

    def wait_for_return(self, known: Collection[int], seconds: float) -> None:
        """Wait up to some seconds for known nodes that have not reconnected yet."""
        deadline = self._clock() + seconds
        away = set(known).difference(self.connected)
        if away:
            logger.info("Waiting %g seconds for %d nodes to reconnect.", seconds, len(away))
        while away.difference(self.refresh_nodes()) and self._clock() < deadline:
            self._sleep(min(1.0, 10 * self._poll_interval))

    def run_round(self, server_round: int, target: int) -> bool:
        """Process replies until `target` are accepted in all.

        The first round lasts until the first step, however many replies that takes; so does the
        round in which a run resumes among other nodes.

        Returns
        -------
        bool
            False, with an error logged, if a step left the range of the model's numbers or there
            is a `stop_reason`.
        """
        endpoint, self._round = self.endpoint, server_round
        deadline = self._clock() + self._timeout
        while endpoint.state.accepted < target or endpoint.state.quorum_pending:
            before = endpoint.state.accepted
            connected = self.refresh_nodes()
            endpoint.state = on_clock(on_connected(endpoint.state, connected), self._clock())
            self._dispatch_due()
            arrived = self._collect_replies(target)
            endpoint.state = on_all_quarantined(endpoint.state, self._clock())
            if endpoint.out_of_range:
                self._log_end("a step left the range of the model's numbers and was undone")
                return False
            if endpoint.state.accepted > before and not endpoint.state.quorum_pending:
                deadline = self._clock() + self._timeout
            elif why := stop_reason(endpoint.state, self._clock(), deadline, self._timeout):
                self._log_end(why)
                return False
            if not arrived:
                deadline += self.poll_wait()
        return True

    def poll_wait(self) -> float:
        """Sleep for the poll interval, in parts short enough for signals.

        Returns
        -------
        float
            Seconds for which the machine was suspended meanwhile: no node is late for that, and
            no time limit runs.
        """
        left, lost = self._poll_interval, 0.0
        while left > 0:
            self._on_idle()
            pause, began = min(left, SIGNAL_POLL_SECONDS), self._clock()
            self._sleep(pause)
            left, lost = left - pause, lost + (self._clock() - began - pause)
        if lost < CLOCK_JUMP_SECONDS:
            return 0.0
        logger.warning("The run was suspended for %.0f seconds: time limits are extended.", lost)
        self.endpoint.state = on_clock_paused(self.endpoint.state, lost)
        return lost

    def refresh_nodes(self) -> tuple[int, ...]:
        """Return the connected nodes; the last known ones while the network fails."""
        try:
            self.connected = tuple(self._grid.get_node_ids())
        except self._network_errors as error:
            self._log_network(error)
        return self.connected

    def _collect_replies(self, target: int) -> bool:
        """Pull every message in flight; return whether a reply arrived."""
        endpoint, arrived = self.endpoint, False
        self._poller.begin_pass(endpoint.state.in_flight)
        for message_id, sent in list(endpoint.state.in_flight.items()):
            for reply in self._pull(message_id, sent.node_id)[:1]:
                endpoint.receive(message_id, reply)
                arrived = True
                # A run that resumes from here looks at its clock first: so does this one.
                endpoint.state = on_clock(endpoint.state, self._clock())
                # The node that replied gets its next query before anything else happens.
                self._dispatch_due()
                self._on_idle()
            done = endpoint.state.accepted >= target and not endpoint.state.quorum_pending
            if done or endpoint.out_of_range:
                break
        return arrived

    def _dispatch_due(self) -> None:
        endpoint = self.endpoint
        for node_id in due_nodes(endpoint.state, self.connected, self._clock()):
            query = endpoint.state.next_query_id
            message = endpoint.query(node_id, query, self._round, self._config)
            try:
                sent = [key for key in self._grid.push_messages([message]) if key]
            except self._network_errors as error:
                self._log_network(error)
                sent = []
            now = self._clock()
            if sent and sent[0] in endpoint.state.in_flight:
                # The network reuses an id: the message that had it in another run is gone.
                endpoint.apply(sent[0], Rejected(Reason.LOST))
            if sent:
                endpoint.state = on_sent(endpoint.state, node_id, str(sent[0]), query, now)
            else:
                endpoint.state = on_unsent(endpoint.state, node_id, now)

    def _pull(self, message_id: str, node_id: int) -> list[Message]:
        """Pull the reply to one message, if it is there.

        If the call raises, it may be a passing fault of the network, or a reply that cannot be
        decoded. In the second case the next pull finds the message gone, or its time limit
        passes.
        """
        try:
            replies = self._poller.poll(message_id, node_id)
        except self._network_errors as error:
            self._log_network(error)
            return []
        if replies is None:
            return []
        self._network_fails = False
        return replies

    def _log_network(self, error: Exception) -> None:
        """Log a network failure once, until a call has worked again."""
        if not self._network_fails:
            self._network_fails = True
            logger.warning("A call to the SuperLink failed (%s); retrying.", type(error).__name__)

    def _log_end(self, why: str) -> None:
        endpoint, state = self.endpoint, self.endpoint.state
        endpoint.stop_reason = why
        logger.error(
            "The run ends in round %d with %d replies and %d steps: %s. %d nodes are connected, "
            "%d have replied, and the first step needs %d; rejected replies: %s%s.",
            self._round,
            state.accepted,
            state.iterates.step,
            why,
            len(self.connected),
            sum(node.accepted > 0 for node in state.nodes.values()),
            quorum_size(state),
            {reason.name: count for reason, count in state.reasons.items()} or "none",
            endpoint.last_fault and f"; the last one: {endpoint.last_fault}",
        )
