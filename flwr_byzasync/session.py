"""One run's state with what it takes to exchange it for Flower messages; no loop, no waiting."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from logging import getLogger

import torch
from flwr.app import ArrayRecord, Message, MessageType

from flwr_byzasync import records
from flwr_byzasync.errors import Reason
from flwr_byzasync.events import on_reply
from flwr_byzasync.state import Rejected, ServerState, Update
from flwr_byzasync.transitions import Status

logger = getLogger("flwr")


@dataclass(frozen=True)
class Wire:
    """How messages look.

    Parameters
    ----------
    payload : str
        What a reply is; told with each query, echoed with each reply.
    arrayrecord_key, configrecord_key : str
        Names of the records.
    """

    payload: str
    arrayrecord_key: str
    configrecord_key: str


@dataclass
class Session:
    """The state of one run, and the way of one message in and out.

    Parameters
    ----------
    state : ServerState
        Replaced by each event.
    wire : Wire
        How messages look.
    device : torch.device
        Where vectors go.
    clock : callable
        Seconds of a monotonic clock.
    """

    state: ServerState
    wire: Wire
    device: torch.device
    clock: Callable[[], float]
    _told: set[tuple[int, Reason]] = field(default_factory=set)

    def query(
        self, node_id: int, query: int, server_round: int, config: Mapping[str, object]
    ) -> Message:
        """Return the message that asks a node for its vector at the current point."""
        state, wire = self.state, self.wire
        own = {
            records.QUERY: query,
            records.COUNT: state.nodes[node_id].accepted,
            records.PAYLOAD: wire.payload,
            records.ROUND: server_round,
        }
        content = records.encode_query(
            state.layout,
            state.iterates.x,
            state.buffers,
            state.counters,
            {**config, **own},
            wire.arrayrecord_key,
            wire.configrecord_key,
        )
        return Message(content, dst_node_id=node_id, message_type=MessageType.TRAIN)

    def receive(self, message_id: str, reply: Message) -> None:
        """Take the reply to a message in; whose it is, the book of sent messages says.

        Parameters
        ----------
        message_id : str
            The message whose reply was asked for. The reply's own metadata is what a client
            wrote, and is not read.
        reply : Message
            As it came off the network.
        """
        sent = self.state.book.get(message_id)
        if sent is None:
            content: Update | Rejected = Rejected(Reason.UNSOLICITED)
        else:
            content = records.decode_reply(
                reply,
                self.state.layout,
                self.device,
                sent.query,
                self.wire.payload,
                self.wire.arrayrecord_key,
                self.wire.configrecord_key,
            )
        self.settle(message_id, content)

    def settle(self, message_id: str, content: Update | Rejected) -> None:
        """Carry out what a message's reply was worth."""
        sent = self.state.book.get(message_id)
        self.state = on_reply(self.state, message_id, content, self.clock())
        if sent is not None and isinstance(content, Rejected):
            self._log(sent.node_id, content)

    def arrays(self) -> ArrayRecord:
        """Return the whole model at the query point, in the user's order."""
        state = self.state
        return records.model_record(state.layout, state.iterates.x, state.buffers, state.counters)

    def _log(self, node_id: int, rejected: Rejected) -> None:
        """Log a node's first fault of each kind, and that it is given up: a liar may not flood."""
        if (node_id, rejected.reason) not in self._told:
            self._told.add((node_id, rejected.reason))
            detail = f" ({rejected.detail})" if rejected.detail else ""
            reason = rejected.reason.value
            logger.warning("Reply of node %d not used: %s%s.", node_id, reason, detail)
        node = self.state.nodes[node_id]
        if node.status is Status.SHUT:
            logger.warning(
                "Node %d is left alone for long: %d faults in a row.", node_id, node.faults
            )
