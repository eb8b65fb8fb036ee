"""The state of one run, and how Flower messages change it; no loop, no waiting."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from logging import DEBUG, WARNING, getLogger

import torch
from flwr.app import ArrayRecord, Message, MessageType

from flwr_byzasync.core.contribution import Contribution
from flwr_byzasync.core.events import on_reply
from flwr_byzasync.core.layout import Layout, norm_within_limit
from flwr_byzasync.core.state import InFlightQuery, Rejected, ServerState, Update
from flwr_byzasync.core.transitions import Status
from flwr_byzasync.errors import ConfigError, Reason
from flwr_byzasync.wire.arrays import tensors_of
from flwr_byzasync.wire.keys import COUNT, MODEL, PAYLOAD, QUERY, ROUND, MessageFormat
from flwr_byzasync.wire.queries import encode_query, model_record
from flwr_byzasync.wire.replies import decode_reply

logger = getLogger("flwr")

MAX_LOG_LINES = 1000
"""Faults that are logged one by one: clients that reconnect under ever new ids must not fill a
disk."""


@dataclass
class Endpoint:
    """The state of one run, and the way of a message in and out.

    Parameters
    ----------
    state : ServerState
        Replaced by each event.
    message_format : MessageFormat
        What messages look like.
    device : torch.device
        Where vectors go.
    clock : callable
        Seconds of a monotonic clock.
    last_fault : str
        What was wrong with the last rejected reply.
    out_of_range : bool
        Whether a step has left the range of the model's numbers: a step too long, or a rule
        that is not robust. It was undone, so the model stays finite.
    inconsistent : bool
        True if an exception escaped while a reply was applied: tables and state may not match.
    stop_reason : str
        Why the run ended before its last round.
    """

    state: ServerState
    message_format: MessageFormat
    device: torch.device
    clock: Callable[[], float]
    last_fault: str = ""
    out_of_range: bool = False
    inconsistent: bool = False
    stop_reason: str = ""
    _log_lines: int = 0
    _logged: set[tuple[int, Reason]] = field(default_factory=set)
    _unchanged: set[int] = field(default_factory=set)
    _warned_of_unchanged: bool = False

    def query(
        self, node_id: int, query: int, server_round: int, config: Mapping[str, object]
    ) -> Message:
        """Return the message that queries a node at the current point."""
        state, message_format = self.state, self.message_format
        node = state.nodes[node_id]
        own: dict[str, object] = {ROUND: server_round}
        if message_format.payload != MODEL:
            own |= {QUERY: query, COUNT: node.accepted, PAYLOAD: message_format.payload}
        content = encode_query(
            state.layout,
            state.iterates.x,
            state.buffers,
            state.counters,
            {**config, **own},
            message_format,
            node.previous_point,
        )
        return Message(content, dst_node_id=node_id, message_type=MessageType.TRAIN)

    def receive(self, message_id: str, reply: Message) -> None:
        """Apply the reply to a message; the query in flight says which node's it is.

        Parameters
        ----------
        message_id : str
            The message whose reply was pulled. The reply's own metadata was written by a client
            and is not read.
        reply : Message
            As received.
        """
        sent = self.state.in_flight.get(message_id)
        if sent is None:
            content: Update | Rejected = Rejected(Reason.UNSOLICITED)
        else:
            content = self._with_row(sent, self._decoded(sent, reply))
        self.apply(message_id, content)
        if sent is not None and sent.node_id in self._unchanged:
            self._warn_of_unchanged()

    def apply(self, message_id: str, content: Update | Rejected) -> None:
        """Change the state by a decoded reply; undo a step that leaves the range of numbers."""
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
        """Whether the model is finite in its own dtypes: half precision holds much less."""
        return norm_within_limit(self.state.layout.parameters.as_sent(self.state.iterates.x))

    def _decoded(self, sent: InFlightQuery, reply: Message) -> Update | Rejected:
        layout = self.state.layout
        return decode_reply(
            reply, layout, self.device, sent.query, self.message_format, sent.with_previous
        )

    def _with_row(self, sent: InFlightQuery, content: Update | Rejected) -> Update | Rejected:
        """Replace the vector of a reply by its node's new row."""
        if isinstance(content, Rejected):
            return content
        state, node = self.state, self.state.nodes[sent.node_id]
        rows = state.tables.parameters.view().rows
        point = sent.point
        contribution = Contribution(
            content.vector,
            content.previous,
            query_sent=None if point is None else state.layout.parameters.as_sent(point),
            query_point=sent.shifted_point,
            row=None if node.row is None else rows[node.row],
            count=node.replies_in_row,
        )
        if not self._warned_of_unchanged and self.message_format.payload == MODEL:
            self._observe_unchanged(sent.node_id, contribution)
        vector = state.policy.payload.to_row(contribution)
        if vector is not content.vector and not norm_within_limit(vector):
            return Rejected(Reason.OVERFLOW)
        return replace(content, vector=vector, previous=None)

    def arrays(self) -> ArrayRecord:
        """Return the whole model at the query point, in the user's order."""
        state = self.state
        return model_record(state.layout, state.iterates.x, state.buffers, state.counters)

    def replace_model(self, arrays: ArrayRecord) -> None:
        """Continue from a model that something else has changed: w moves as far as x does.

        So do rows and query points that follow x, or training would undo the change.

        Raises
        ------
        ConfigError
            If it does not have the model's names, shapes and dtypes, or is not finite.
        """
        state, layout = self.state, self.state.layout
        tensors = tensors_of(arrays)
        _check_same_layout(tensors, layout.whole)
        x = layout.parameters.flatten(tensors, self.device)
        w = state.iterates.w + (x - state.iterates.x)
        buffers = layout.buffers.flatten(tensors, self.device)
        if not all(map(norm_within_limit, (x, w, buffers))):
            raise ConfigError("arrays", "NaN or infinity", "finite", "leave the model finite")
        self.state = replace(
            state,
            in_flight=self._shifted(x - state.iterates.x),
            iterates=replace(state.iterates, x=x, w=w),
            buffers=buffers,
            counters=layout.counters.flatten(tensors, self.device),
        )

    def _shifted(self, shift: torch.Tensor) -> Mapping[str, InFlightQuery]:
        """Move all rows that follow x with it, and return the queries in flight, moved too."""
        state, share = self.state, self.state.policy.payload.delay_compensation
        if not share:
            return state.in_flight
        state.tables.parameters.shift(-share * shift)
        return {
            key: replace(
                sent, model_shift=shift if sent.model_shift is None else sent.model_shift + shift
            )
            for key, sent in state.in_flight.items()
        }

    def _observe_unchanged(self, node_id: int, new: Contribution) -> None:
        """Remember whether a node's last reply was the model just as it was sent."""
        unchanged = new.query_sent is not None and torch.equal(new.reply, new.query_sent)
        (self._unchanged.add if unchanged else self._unchanged.discard)(node_id)

    def _warn_of_unchanged(self) -> None:
        """Warn once if a majority returns the model as it was sent: a robust rule stands still."""
        state = self.state
        rows = {node_id for node_id, node in state.nodes.items() if node.row is not None}
        self._unchanged &= rows
        minority = 2 * len(self._unchanged) <= len(rows)
        if self._warned_of_unchanged or state.quorum_pending or minority:
            return
        self._warned_of_unchanged = True
        logger.warning(
            "%d of %d nodes returned the model just as it was sent to them, and a robust rule "
            "follows the majority: do these nodes have data, and does their ClientApp train?",
            len(self._unchanged),
            len(rows),
        )

    def _log_out_of_range(self) -> None:
        if not self.out_of_range:
            self.out_of_range = True
            logger.error(
                "A step left the range of the model's numbers and was undone: pass a smaller "
                "learning rate, or a robust rule."
            )

    def _log(self, node_id: int, rejected: Rejected) -> None:
        """Log a node's first fault of each kind, and its quarantine: clients may not flood logs."""
        detail = f" ({rejected.detail})" if rejected.detail else ""
        self.last_fault = rejected.reason.value + detail
        if (node_id, rejected.reason) not in self._logged:
            if len(self._logged) >= len(Reason) * len(self.state.nodes):
                # Forget the nodes that the state has forgotten.
                self._logged = {key for key in self._logged if key[0] in self.state.nodes}
            self._logged.add((node_id, rejected.reason))
            self._log_lines += 1
            level = WARNING if self._log_lines <= MAX_LOG_LINES else DEBUG
            logger.log(level, "Reply of node %d rejected: %s.", node_id, self.last_fault)
            if self._log_lines == MAX_LOG_LINES:
                logger.warning("Further nodes with rejected replies are counted, not logged.")
        node = self.state.nodes[node_id]
        if node.status is Status.QUARANTINED:
            logger.warning("Node %d is quarantined after %d faults in a row.", node_id, node.faults)


def _check_same_layout(tensors: Mapping[str, torch.Tensor], expected: Layout) -> None:
    entries = Layout.of(tensors).entries
    if entries == expected.entries:
        return
    pairs = zip(entries, expected.entries, strict=False)
    odd = next((entry for entry, other in pairs if entry != other), None)
    shown = (odd.name, odd.shape, odd.dtype) if odd else list(tensors)
    legal, fix = "the model's arrays, in its order", "leave names, shapes and dtypes as they were"
    raise ConfigError("arrays", shown, legal, fix)
