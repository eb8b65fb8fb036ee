"""The arrival loop: ask whoever is due, take in what arrives, wait only when nothing does."""

from collections import deque
from collections.abc import Callable, Mapping
from logging import getLogger

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_byzasync.errors import Reason
from flwr_byzasync.events import due_nodes, on_clock, on_connected, on_sent, on_unsent
from flwr_byzasync.session import Session
from flwr_byzasync.state import Rejected, quorum

logger = getLogger("flwr")


class ArrivalLoop:
    """Drives a session over a grid.

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
        Longest time in seconds without an accepted reply.
    sleep : callable
        Waits some seconds.
    poll_interval : float
        Seconds between two looks at the network when nothing arrived.
    """

    def __init__(
        self,
        session: Session,
        grid: Grid,
        config: Mapping[str, object],
        timeout: float,
        sleep: Callable[[float], None],
        poll_interval: float,
    ) -> None:
        self.session = session
        self.connected: tuple[int, ...] = ()
        self._grid, self._config, self._timeout = grid, config, timeout
        self._clock, self._sleep, self._poll_interval = session.clock, sleep, poll_interval
        self._round = 1
        self._inbox: deque[Message] = deque()
        self._deadline = self._clock() + timeout

    def wait_for_nodes(self, wanted: int) -> bool:
        """Wait until `wanted` nodes are connected; False, and an error in the log, if in vain."""
        said = -1
        while len(self._look_who_is_there()) < wanted:
            if said != len(self.connected):
                said = len(self.connected)
                logger.info("Waiting for nodes: %d of %d are connected.", said, wanted)
            if self._clock() >= self._deadline:
                logger.error(
                    "Only %d of %d nodes connected within timeout=%g seconds: start more nodes, "
                    "or pass a smaller min_nodes.",
                    said,
                    wanted,
                    self._timeout,
                )
                return False
            self._sleep(min(1.0, 50 * self._poll_interval))
        return True

    def play_round(self, server_round: int, target: int) -> bool:
        """Take replies in until `target` are accepted in all.

        Returns
        -------
        bool
            False, and an error in the log, if no reply was accepted for `timeout` seconds.
        """
        session, self._round = self.session, server_round
        self._deadline = self._clock() + self._timeout
        while session.state.accepted < target:
            if not self._inbox:
                self._look_around()
            if self._inbox:
                before = session.state.accepted
                session.receive(self._inbox.popleft())
                if session.state.accepted > before:
                    self._deadline = self._clock() + self._timeout
                # The node that replied is sent its next query before anything else happens.
                self._ask_due()
            elif self._clock() >= self._deadline:
                self._log_stalled()
                return False
            else:
                self._sleep(self._poll_interval)
        return True

    def _look_around(self) -> None:
        """See who is there, ask whoever is due, and pull what has arrived."""
        session, here = self.session, self._look_who_is_there()
        session.state = on_clock(on_connected(session.state, here), self._clock())
        self._ask_due()
        self._inbox.extend(self._pull())

    def _look_who_is_there(self) -> tuple[int, ...]:
        try:
            self.connected = tuple(self._grid.get_node_ids())
        except Exception as error:
            logger.warning("The list of nodes could not be read: %s.", type(error).__name__)
        return self.connected

    def _ask_due(self) -> None:
        session = self.session
        for node_id in due_nodes(session.state, self.connected, self._clock()):
            query = session.state.queries
            message = session.query(node_id, query, self._round, self._config)
            try:
                # One message a push: a grid may leave a refused message out of the ids that it
                # returns, so that positions mean nothing.
                sent = [key for key in self._grid.push_messages([message]) if key]
            except Exception as error:
                logger.warning("A query could not be sent: %s.", type(error).__name__)
                sent = []
            now = self._clock()
            if sent:
                session.state = on_sent(session.state, node_id, str(sent[0]), query, now)
            else:
                session.state = on_unsent(session.state, node_id, now)

    def _pull(self) -> list[Message]:
        """Pull all replies that are there, each on its own if one makes the network code raise."""
        waiting = list(self.session.state.book)
        try:
            return list(self._grid.pull_messages(waiting)) if waiting else []
        except Exception as error:
            logger.warning("Replies could not be pulled: %s.", type(error).__name__)
        pulled: list[Message] = []
        raised: list[str] = []
        for message_id in waiting:
            try:
                pulled.extend(self._grid.pull_messages([message_id]))
            except Exception:
                raised.append(message_id)
        if len(raised) < len(waiting):
            # The network works, so these replies themselves cannot be taken apart.
            for message_id in raised:
                self.session.settle(message_id, Rejected(Reason.UNREADABLE))
        return pulled

    def _log_stalled(self) -> None:
        state = self.session.state
        logger.error(
            "No reply was accepted for timeout=%g seconds: the run ends in round %d with %d "
            "replies. %d nodes are connected, %d have replied, and the first step needs %d; "
            "rejected replies: %s.",
            self._timeout,
            self._round,
            state.accepted,
            len(self.connected),
            sum(node.accepted > 0 for node in state.nodes.values()),
            quorum(state),
            {reason.name: count for reason, count in state.reasons.items()} or "none",
        )
