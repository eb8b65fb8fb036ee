"""One run's state with what it takes to exchange it for Flower messages; no loop, no waiting."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from logging import DEBUG, WARNING, getLogger

import torch
from flwr.app import ArrayRecord, Message, MessageType

from flwr_byzasync.core.contribution import Reading
from flwr_byzasync.core.events import on_reply
from flwr_byzasync.core.layout import Layout, norm_within_limit
from flwr_byzasync.core.state import InFlightQuery, Rejected, ServerState, Update
from flwr_byzasync.core.transitions import Status
from flwr_byzasync.errors import ConfigError, Reason
from flwr_byzasync.wire.arrays import tensors_of
from flwr_byzasync.wire.keys import COUNT, PAYLOAD, QUERY, ROUND, MessageFormat
from flwr_byzasync.wire.queries import encode_query, model_record
from flwr_byzasync.wire.replies import decode_reply

logger = getLogger("flwr")

MAX_LOG_LINES = 1000
"""Nodes' faults that are logged one by one: who comes under ever new ids may not fill a disk."""


@dataclass
class Endpoint:
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
    last_fault : str
        What was wrong with the last reply that could not be used.
    out_of_range : bool
        Whether a step has left the range of the model's numbers: a step too long, or a rule
        that bounds nobody. It was taken back, so that the model stays finite.
    torn : bool
        Whether a rule or an optimizer raised while it took a reply in: tables and state may not
        go together.
    gave_up : str
        Why the run ended before its last round.
    """

    state: ServerState
    wire: MessageFormat
    device: torch.device
    clock: Callable[[], float]
    last_fault: str = ""
    out_of_range: bool = False
    inconsistent: bool = False
    stop_reason: str = ""
    _log_lines: int = 0
    _logged: set[tuple[int, Reason]] = field(default_factory=set)

    def query(
        self, node_id: int, query: int, server_round: int, config: Mapping[str, object]
    ) -> Message:
        """Return the message that asks a node for its vector at the current point."""
        state, wire = self.state, self.wire
        node = state.nodes[node_id]
        own: dict[str, object] = {ROUND: server_round}
        if wire.payload != "model":
            own |= {
                QUERY: query,
                COUNT: node.accepted,
                PAYLOAD: wire.payload,
            }
        content = encode_query(
            state.layout,
            state.iterates.x,
            state.buffers,
            state.counters,
            {**config, **own},
            wire,
            node.previous_point,
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
        sent = self.state.in_flight.get(message_id)
        if sent is None:
            content: Update | Rejected = Rejected(Reason.UNSOLICITED)
        else:
            content = self._row(sent, self._decoded(sent, reply))
        self.apply(message_id, content)

    def apply(self, message_id: str, content: Update | Rejected) -> None:
        """Carry out what a message's reply was worth."""
        sent, before = self.state.in_flight.get(message_id), self.state.iterates
        self.inconsistent = True
        self.state = on_reply(self.state, message_id, content, self.clock())
        self.inconsistent = False
        if self.state.iterates is not before and not self._in_range():
            self.state = replace(self.state, iterates=before)
            self._log_out_of_range()
        if sent is not None and isinstance(content, Rejected):
            self._log(sent.node_id, content)

    def _in_range(self) -> bool:
        """Whether the model is finite as nodes are sent it: in half precision much less is."""
        return norm_within_limit(self.state.layout.parameters.as_sent(self.state.iterates.x))

    def _decoded(self, sent: InFlightQuery, reply: Message) -> Update | Rejected:
        layout = self.state.layout
        return decode_reply(reply, layout, self.device, sent.query, self.wire, sent.with_previous)

    def _row(self, sent: InFlightQuery, content: Update | Rejected) -> Update | Rejected:
        """Turn what a reply holds into its node's row."""
        reading = self.state.policy.reading
        if isinstance(content, Rejected) or reading == Reading():
            return content
        node = self.state.nodes[sent.node_id]
        rows = self.state.tables.parameters.view().rows
        row = None if node.row is None else rows[node.row]
        # Of a model in half precision a node is sent the rounded values.
        given = None if sent.point is None else self.state.layout.parameters.as_sent(sent.point)
        followed = sent.shifted_point
        vector = reading.row(
            content.vector, content.previous, given, followed, row, node.replies_in_row
        )
        if not norm_within_limit(vector):
            return Rejected(Reason.OVERFLOW)
        return replace(content, vector=vector, previous=None)

    def arrays(self) -> ArrayRecord:
        """Return the whole model at the query point, in the user's order."""
        state = self.state
        return model_record(state.layout, state.iterates.x, state.buffers, state.counters)

    def replace_model(self, arrays: ArrayRecord) -> None:
        """Take over a model that somebody changed: w moves as far as x does.

        So does whatever is compared with x, or training would take the change back.

        Raises
        ------
        ConfigError
            If it is not of the model's names, shapes and dtypes, or not finite.
        """
        state, layout = self.state, self.state.layout
        tensors = tensors_of(arrays)
        given, wanted = Layout.of(tensors).entries, layout.whole.entries
        if given != wanted:
            odd = next((g for g, w in zip(given, wanted, strict=False) if g != w), None)
            shown = (odd.name, odd.shape, odd.dtype) if odd else list(tensors)
            legal = "the model's arrays, in its order"
            fix = "leave names, shapes and dtypes as they were"
            raise ConfigError("arrays", shown, legal, fix)
        x = layout.parameters.flatten(tensors, self.device)
        w = state.iterates.w + (x - state.iterates.x)
        buffers = layout.buffers.flatten(tensors, self.device)
        if not (norm_within_limit(x) and norm_within_limit(w) and norm_within_limit(buffers)):
            raise ConfigError("arrays", "NaN or infinity", "finite", "leave the model finite")
        book, share = state.in_flight, state.policy.reading.delay_compensation
        if share:
            jump = x - state.iterates.x
            state.tables.parameters.shift(-share * jump)
            book = {
                key: replace(
                    line, model_shift=jump if line.model_shift is None else line.model_shift + jump
                )
                for key, line in book.items()
            }
        self.state = replace(
            state,
            in_flight=book,
            iterates=replace(state.iterates, x=x, w=w),
            buffers=buffers,
            counters=layout.counters.flatten(tensors, self.device),
        )

    def _log_out_of_range(self) -> None:
        if not self.out_of_range:
            self.out_of_range = True
            logger.error(
                "A step left the range of the model's numbers and was taken back: pass a smaller "
                "learning rate, or a rule that bounds what a liar can do."
            )

    def _log(self, node_id: int, rejected: Rejected) -> None:
        """Log a node's first fault of each kind, and that it is given up: a liar may not flood."""
        detail = f" ({rejected.detail})" if rejected.detail else ""
        self.last_fault = rejected.reason.value + detail
        if (node_id, rejected.reason) not in self._logged:
            if len(self._logged) >= len(Reason) * len(self.state.nodes):
                # Nodes that come under ever new ids are forgotten here, too.
                self._logged = {told for told in self._logged if told[0] in self.state.nodes}
            self._logged.add((node_id, rejected.reason))
            self._log_lines += 1
            level = WARNING if self._log_lines <= MAX_LOG_LINES else DEBUG
            logger.log(level, "Reply of node %d not used: %s.", node_id, self.last_fault)
            if self._log_lines == MAX_LOG_LINES:
                logger.warning("More nodes whose replies are not used are counted in silence.")
        node = self.state.nodes[node_id]
        if node.status is Status.QUARANTINED:
            logger.warning(
                "Node %d is left alone for long: %d faults in a row.", node_id, node.faults
            )
