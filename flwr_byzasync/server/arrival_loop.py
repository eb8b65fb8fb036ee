"""The arrival loop: ask whoever is due, take in what arrives, wait only when nothing does."""

import time
from collections.abc import Callable, Collection, Mapping
from logging import getLogger

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_byzasync._clock import clock_of
from flwr_byzasync.core.events import (
    due_nodes,
    on_all_quarantined,
    on_clock,
    on_connected,
    on_sent,
    on_standstill,
    on_unsent,
)
from flwr_byzasync.core.quorum import all_quarantined, paused, quorum
from flwr_byzasync.core.state import Rejected
from flwr_byzasync.errors import Reason
from flwr_byzasync.server.endpoint import Endpoint
from flwr_byzasync.server.poller import ReplyPoller

logger = getLogger("flwr")

SIGNAL_POLL_SECONDS = 1.0
"""Seconds within which a signal is noticed, however seldom the network is looked at."""
CLOCK_JUMP_SECONDS = 60.0
"""Seconds by which a wait must have been too long for everything to have stood still."""


class ArrivalLoop:
    """Drives a session over a grid.

    Messages are pushed and pulled one at a time. A grid may leave a refused message out of the
    ids that it returns, so that positions mean nothing; one reply that cannot be inflated makes
    a pull raise after the SuperLink has deleted all that it returned; one that is not uploaded
    to its end makes a pull hang; and the metadata of a reply is the client's own text. The id
    that was asked for is the only identity there is.

    Parameters
    ----------
    session : Session
        State and messages of the run.
    grid : Grid
        Flower's network. Whatever its calls raise is survived: the exceptions differ between
        releases, and none may end a run.
    config : mapping
        The user's train config, sent with every query.
    timeout : float
        Longest time in seconds without an accepted reply, and before the first step.
    sleep : callable
        Waits some seconds.
    poll_interval : float
        Seconds between two looks at the network when nothing arrived.
    between : callable
        Called after each reply and before each wait, when the state is whole: to write it down.
    """

    def __init__(
        self,
        session: Endpoint,
        grid: Grid,
        config: Mapping[str, object],
        timeout: float,
        sleep: Callable[[float], None],
        poll_interval: float,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self.session = session
        self.connected: tuple[int, ...] = ()
        self._grid, self._config, self._timeout = grid, config, timeout
        self._clock, self._sleep, self._poll_interval = session.clock, sleep, poll_interval
        self._between = between
        self._pulls = poller_of(grid)
        self._round = 1
        self._network_fails = False

    def wait_for_nodes(self, wanted: int) -> bool:
        """Wait until `wanted` nodes are connected; False, and an error in the log, if in vain."""
        said, deadline = -1, self._clock() + self._timeout
        while len(self.refresh_nodes()) < wanted:
            if said != len(self.connected):
                said = len(self.connected)
                logger.info("Waiting for nodes: %d of %d are connected.", said, wanted)
            if self._clock() >= deadline:
                self.session.stop_reason = f"{said} of {wanted} nodes connected in time"
                logger.error(
                    "Only %d of %d nodes connected within timeout=%g seconds: start more nodes, "
                    "or pass a smaller min_available_nodes or min_nodes.",
                    said,
                    wanted,
                    self._timeout,
                )
                return False
            self._sleep(min(1.0, 10 * self._poll_interval))
        return True

    def wait_for_return(self, known: Collection[int], seconds: float) -> None:
        """Wait some seconds for those of the known nodes that are not connected yet."""
        deadline = self._clock() + seconds
        away = set(known).difference(self.connected)
        if away:
            logger.info("Waiting %g seconds for %d nodes to come back.", seconds, len(away))
        while away.difference(self.refresh_nodes()) and self._clock() < deadline:
            self._sleep(min(1.0, 10 * self._poll_interval))

    def run_round(self, server_round: int, target: int) -> bool:
        """Take replies in until `target` are accepted in all.

        The first round lasts until the first step, however many replies that takes; so does the
        one in which a run goes on among other nodes.

        Returns
        -------
        bool
            False, and an error in the log, if no reply was accepted for `timeout` seconds, no
            step was made for that long, a step left the range of the model's numbers, or every
            node is shut and nobody has replied yet or will be asked again in time.
        """
        session, self._round = self.session, server_round
        deadline = self._clock() + self._timeout
        while session.state.accepted < target or session.state.quorum_pending:
            before = session.state.accepted
            here = self.refresh_nodes()
            session.state = on_clock(on_connected(session.state, here), self._clock())
            self._dispatch_due()
            arrived = self._collect_replies(target)
            session.state = on_all_quarantined(session.state, self._clock())
            if session.out_of_range:
                self._log_end("a step left the range of the model's numbers and was taken back")
                return False
            if session.state.accepted > before and not session.state.quorum_pending:
                deadline = self._clock() + self._timeout
            elif self._clock() >= deadline or self._nobody_comes_back(deadline):
                self._log_end(self._what_is_missing())
                return False
            if not arrived:
                deadline += self.poll_wait()
        return True

    def poll_wait(self) -> float:
        """Wait as long as between two looks at the network, a signal's notice at most.

        Returns
        -------
        float
            Seconds that everything stood still meanwhile, as when a machine is suspended: no
            node is late for that, and no time limit runs.
        """
        left, lost = self._poll_interval, 0.0
        while left > 0:
            self._between()
            pause, began = min(left, SIGNAL_POLL_SECONDS), self._clock()
            self._sleep(pause)
            left, lost = left - pause, lost + (self._clock() - began - pause)
        if lost < CLOCK_JUMP_SECONDS:
            return 0.0
        logger.warning("The run stood still for %.0f seconds: time limits are moved.", lost)
        self.session.state = on_standstill(self.session.state, lost)
        return lost

    def _collect_replies(self, target: int) -> bool:
        """Pull every message that may be answered; True if one was."""
        session, arrived = self.session, False
        self._pulls.begin_pass(session.state.in_flight)
        for message_id, line in list(session.state.in_flight.items()):
            for reply in self._pull(message_id, line.node_id)[:1]:
                session.receive(message_id, reply)
                arrived = True
                # A run that goes on from here looks at its clock first: so does this one.
                session.state = on_clock(session.state, self._clock())
                # The node that replied is sent its next query before anything else happens.
                self._dispatch_due()
                self._between()
            done = session.state.accepted >= target and not session.state.quorum_pending
            if done or session.out_of_range:
                break
        return arrived

    def refresh_nodes(self) -> tuple[int, ...]:
        """Return the connected nodes; the last known ones while the network fails."""
        try:
            self.connected = tuple(self._grid.get_node_ids())
        except Exception as error:
            self._log_network(error)
        return self.connected

    def _dispatch_due(self) -> None:
        session = self.session
        for node_id in due_nodes(session.state, self.connected, self._clock()):
            query = session.state.next_query_id
            message = session.query(node_id, query, self._round, self._config)
            try:
                sent = [key for key in self._grid.push_messages([message]) if key]
            except Exception as error:
                self._log_network(error)
                sent = []
            now = self._clock()
            if sent and sent[0] in session.state.in_flight:
                # An id that is given again: the message that had it in another run is gone.
                session.apply(sent[0], Rejected(Reason.LOST))
            if sent:
                session.state = on_sent(session.state, node_id, str(sent[0]), query, now)
            else:
                session.state = on_unsent(session.state, node_id, now)

    def _pull(self, message_id: str, node_id: int) -> list[Message]:
        """Pull the reply to one message, if it is there.

        If the call raises, nothing is known: a passing fault of the network, or a reply that
        cannot be taken apart. In the second case the next pull finds the message gone, or its
        time limit passes.
        """
        try:
            replies = self._pulls.poll(message_id, node_id)
        except Exception as error:
            self._log_network(error)
            return []
        if replies is None:
            return []
        self._network_fails = False
        return replies

    def _nobody_comes_back(self, deadline: float) -> bool:
        """Whether every node is shut for longer than the run waits, or from the start on."""
        state = self.session.state
        if not all_quarantined(state):
            return False
        return state.accepted == 0 or min(node.due for node in state.nodes.values()) >= deadline

    def _log_network(self, error: Exception) -> None:
        """Log that the network fails once, until a call has worked again."""
        if not self._network_fails:
            self._network_fails = True
            logger.warning("A call to the SuperLink failed (%s); trying on.", type(error).__name__)

    def _what_is_missing(self) -> str:
        state = self.session.state
        if all_quarantined(state):
            return "every connected node is shut after too many faults"
        if state.quorum_pending or not state.initial_nodes:
            return f"the first step was not made within timeout={self._timeout:g} seconds"
        held = ", and below_min_nodes='wait' waits for more nodes" if paused(state) else ""
        return f"no reply was accepted for timeout={self._timeout:g} seconds{held}"

    def _log_end(self, why: str) -> None:
        session, state = self.session, self.session.state
        session.stop_reason = why
        logger.error(
            "The run ends in round %d with %d replies and %d steps: %s. %d nodes are connected, "
            "%d have replied, and the first step needs %d; rejected replies: %s%s.",
            self._round,
            state.accepted,
            state.iterates.step,
            why,
            len(self.connected),
            sum(node.accepted > 0 for node in state.nodes.values()),
            quorum(state),
            {reason.name: count for reason, count in state.reasons.items()} or "none",
            session.last_fault and f"; the last one: {session.last_fault}",
        )


def poller_of(grid: Grid) -> ReplyPoller[Message]:
    """Return what pulls replies off a grid, one message at a time."""

    def replies(message_id: str) -> list[Message]:
        return list(grid.pull_messages([message_id]))

    # A grid with a clock of its own computes where it is called: nothing there can hang.
    return ReplyPoller(replies, threads=clock_of(grid)[0] is time.monotonic)
