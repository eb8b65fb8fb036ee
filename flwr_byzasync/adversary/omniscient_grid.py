"""OmniscientGrid: Byzantine nodes that see all traffic, around any grid."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from flwr_byzasync._checks import check_choice, check_integer
from flwr_byzasync._clock import clock_of
from flwr_byzasync._moved_arguments import moved
from flwr_byzasync.adversary.knowledge import knowledge_of
from flwr_byzasync.adversary.reply_vectors import PayloadVector, base_model_of, is_train_query
from flwr_byzasync.aggregators import Aggregator
from flwr_byzasync.attacks import Knowledge, VectorAttack, memory_of, needs_rule
from flwr_byzasync.core.layout import Layout
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.wire.arrays import read_arrays, tensors_of
from flwr_byzasync.wire.flower_compat import message_ids_of

KNOWLEDGE = ("everything", "colluders")
POLL_SECONDS = 0.1
"""Seconds between two polls in `OmniscientGrid.send_and_receive`."""


@dataclass(frozen=True)
class Unanswered:
    """A query without a reply: its node, its arrays, and the model a reply would start from."""

    node_id: int
    layout: Layout
    start: Mapping[str, Tensor] | None


@dataclass
class Traffic:
    """What the adversary has observed; snapshot and restore copy it.

    Parameters
    ----------
    unanswered : dict
        Message id -> the query.
    honest, colluding : dict
        Node id -> its latest vector; of a Byzantine node the honest one that it did not send.
    counts : dict
        Node id -> replies.
    history : dict
        Node id of a Byzantine node -> its own honest vectors, oldest first.
    """

    unanswered: dict[str, Unanswered] = field(default_factory=dict)
    honest: dict[int, Tensor] = field(default_factory=dict)
    colluding: dict[int, Tensor] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    history: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)


class OmniscientGrid(Grid):
    """A Grid that rewrites the replies of Byzantine nodes, knowing all traffic.

    The strategy cannot tell: message ids, times and everything but the arrays of those replies
    are the inner grid's. Around a real grid in a ServerApp it makes any federation Byzantine,
    for tests: Byzantine nodes compute honestly, and their replies are rewritten on the way.

    Parameters
    ----------
    grid : Grid
        The inner grid, for example a `VirtualGrid`. Its further attributes, such as a clock, are
        available here too.
    attack : VectorAttack
        For example ``Little()``.
    nodes : collection of int
        Ids of the Byzantine nodes.
    rule : Aggregator, optional
        The rule that they believe the server uses. Attacks of optimised strength need it.
    knowledge : {"everything", "colluders"}
        "everything": the latest vectors of the honest nodes. "colluders": only the vectors that
        they themselves would honestly send, as an estimate.
    seed : int, default 0
        Of the attack's draws, >= 0.
    arrayrecord_key, configrecord_key : str
        As passed to the strategy.

    Raises
    ------
    ConfigError
        If a setting is out of range.

    Notes
    -----
    Every train reply whose arrays are finite and have the query's names, shapes and dtypes counts
    as accepted: weights are counts of replies. Others pass unchanged, as faults of their nodes.
    """

    @moved({"sees": "knowledge='everything' or 'colluders'"})
    def __init__(
        self,
        grid: Grid,
        attack: VectorAttack,
        nodes: Collection[int],
        *,
        rule: Aggregator | None = None,
        knowledge: Literal["everything", "colluders"] = "everything",
        seed: int = 0,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
    ) -> None:
        if not isinstance(attack, VectorAttack) or isinstance(attack, type):
            fix = "pass for example Little(); a label flip is a transform of the data"
            raise ConfigError("attack", attack, "an attack on vectors", fix)
        if isinstance(nodes, str) or not all(isinstance(node, int) for node in nodes):
            raise ConfigError("nodes", nodes, "a collection of node ids", "see grid.get_node_ids")
        check_choice("knowledge", knowledge, KNOWLEDGE, fix="pass 'everything'")
        if rule is None and needs_rule(attack):
            fix = "pass the strategy's own, or a strength that is not optimised"
            raise ConfigError("rule", None, f"a rule to optimise {attack} against", fix)
        check_integer("seed", seed, low=0, fix="pass for example seed=1")
        self._grid, self._attack, self._byzantine = grid, attack, frozenset(nodes)
        self._rule, self._knows_all, self._seed = rule, knowledge == "everything", seed
        self._keys = (arrayrecord_key, configrecord_key)
        self._traffic = Traffic()

    def __getattr__(self, name: str) -> Any:
        # Attributes that this class lacks: clock, sleep, node_ids and the like.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._grid, name)

    def snapshot(self) -> tuple[Any, Traffic]:
        """Return a copy of the inner grid's state and of the observed traffic."""
        inner: Callable[[], Any] = self._grid.snapshot  # type: ignore[attr-defined]
        return inner(), deepcopy(self._traffic)

    def restore(self, snapshot: tuple[Any, Traffic]) -> None:
        """Continue from a snapshot."""
        self._grid.restore(snapshot[0])  # type: ignore[attr-defined]
        self._traffic = deepcopy(snapshot[1])

    def set_run(self, run: Any) -> None:
        """As the inner grid's."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """As the inner grid's."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As the inner grid's."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the inner grid's."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and observe which node receives what."""
        listed = list(messages)
        ids = list(self._grid.push_messages(listed))
        self._observe_queries(listed, set(ids))
        return ids

    def pull_messages(
        self, message_ids: Iterable[str] | None = None, **renamed: Iterable[str]
    ) -> Iterable[Message]:
        """Return the replies that have arrived, those of Byzantine nodes rewritten."""
        # One by one: only the id that was pulled says whose a reply is.
        return [
            self._observed(message_id, reply)
            for message_id in message_ids_of(message_ids, renamed)
            for reply in self._grid.pull_messages([message_id])
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As the inner grid's, with the replies of Byzantine nodes rewritten."""
        # Not the inner grid's method: there only the client says which message a reply answers.
        clock, sleep = clock_of(self._grid)
        waiting = [message_id for message_id in self.push_messages(messages) if message_id]
        deadline = clock() + (math.inf if timeout is None else timeout)
        replies: list[Message] = []
        while True:
            for message_id in list(waiting):
                for reply in self.pull_messages([message_id]):
                    waiting.remove(message_id)
                    replies.append(reply)
            if not waiting or clock() >= deadline:
                return replies
            sleep(min(POLL_SECONDS, deadline - clock()))

    def _observe_queries(self, messages: Iterable[Message], sent: set[str]) -> None:
        for message in messages:
            if is_train_query(message) and message.metadata.message_id in sent:
                arrays = message.content.array_records.get(self._keys[0]) or ArrayRecord()
                layout, start = Layout.of(tensors_of(arrays)), base_model_of(message, *self._keys)
                query = Unanswered(message.metadata.dst_node_id, layout, start)
                self._traffic.unanswered[message.metadata.message_id] = query

    def _observed(self, message_id: str, reply: Message) -> Message:
        """Return a reply as the server receives it, and remember what it was."""
        query = self._traffic.unanswered.pop(message_id, None)
        honest = None if query is None else self._decoded(reply, query)
        if query is None or honest is None:
            return reply
        traffic, node_id, vector = self._traffic, query.node_id, honest.vector
        before = traffic.counts.get(node_id, 0)
        traffic.counts[node_id] = before + 1
        if node_id not in self._byzantine:
            traffic.honest[node_id] = vector
            return reply
        traffic.colluding[node_id] = vector
        crafted = self._attack.craft(vector, self._knowledge_of(node_id, before))
        memory = memory_of(self._attack)
        if memory > 0:
            traffic.history[node_id] = (*traffic.history.get(node_id, ()), vector)[-memory:]
        reply.content[self._keys[0]] = honest.with_vector(crafted)
        return reply

    def _decoded(self, reply: Message, query: Unanswered) -> PayloadVector | None:
        """Return a reply's vector; None if the server could not accept it."""
        try:
            if not reply.has_content():
                return None
            arrays = read_arrays(reply.content.array_records[self._keys[0]], query.layout)
            decoded = PayloadVector.of(arrays, query.start)
            vector = decoded.vector
            return decoded if vector.numel() and bool(vector.isfinite().all()) else None
        except Exception:  # a record that breaks its own class: a fault of its node
            return None

    def _knowledge_of(self, node_id: int, before: int) -> Knowledge:
        """Return what a Byzantine node knows; its own reply already counts."""
        traffic = self._traffic
        observed = traffic.honest if self._knows_all else traffic.colluding
        held = sum(count for node, count in traffic.counts.items() if node in self._byzantine)
        return knowledge_of(
            list(observed.values()),
            [traffic.counts[node] for node in observed],
            honest_weight=sum(traffic.counts.values()) - held,
            byzantine_weight=held,
            rule=self._rule,
            history=traffic.history.get(node_id, ()),
            reply=before,
            # Each node has draws of its own, by the order of first replies.
            seed=self._seed + 1_000_003 * list(traffic.counts).index(node_id),
        )
