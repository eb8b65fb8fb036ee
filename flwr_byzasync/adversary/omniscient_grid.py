"""OmniscientGrid: Byzantine nodes that see all traffic, around any grid."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from flwr_byzasync._checks import check_choice, check_integer
from flwr_byzasync._clock import clock_of
from flwr_byzasync.adversary.reply_vectors import PayloadVector, base_model_of
from flwr_byzasync.aggregators import Aggregator
from flwr_byzasync.attacks import Knowledge, VectorAttack, memory_of, needs_rule
from flwr_byzasync.core.layout import Layout
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.wire.arrays import read_arrays, tensors_of

SEES = ("everything", "colluders")
POLL = 0.1
"""Seconds between two looks at the network in `OmniscientGrid.send_and_receive`."""


@dataclass(frozen=True)
class Asked:
    """A query that is not answered yet: whose, its arrays, and what weights start from."""

    node_id: int
    layout: Layout
    start: Mapping[str, Tensor] | None


@dataclass
class Traffic:
    """What the adversary has seen. Copied by snapshot and restore.

    Parameters
    ----------
    asked : dict
        Message id -> who was asked, and what its reply must look like.
    honest, colluding : dict
        Node id -> the latest vector it sent, or would honestly have sent.
    counts : dict
        Node id -> replies.
    history : dict
        Node id of a liar -> its own honest vectors, oldest first.
    """

    asked: dict[str, Asked] = field(default_factory=dict)
    honest: dict[int, Tensor] = field(default_factory=dict)
    colluding: dict[int, Tensor] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    history: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)


class OmniscientGrid(Grid):
    """A Grid that rewrites the replies of Byzantine nodes, knowing all traffic.

    The strategy cannot tell: message ids, times and everything but the arrays of those replies
    are the inner grid's. Wrapped around a real grid in a ServerApp it makes any federation
    Byzantine, for tests; its liars compute honestly and are rewritten on the way.

    Parameters
    ----------
    grid : Grid
        The inner grid, for example a `VirtualGrid`. What it has beyond Flower's interface, its
        clock for example, is passed on.
    attack : VectorAttack
        For example ``Little()``.
    nodes : collection of int
        Node ids of the liars.
    rule : Aggregator, optional
        The rule that they believe the server to use. Attacks of optimised strength need it.
    sees : {"everything", "colluders"}
        "everything": the latest vectors of the honest nodes. "colluders": only what they
        themselves would honestly send, from which they estimate.
    seed : int, default 0
        Of the attack's draws, >= 0.
    arrayrecord_key, configrecord_key : str
        As given to the strategy.

    Raises
    ------
    ConfigError
        If a setting is out of range.

    Notes
    -----
    Every train reply whose arrays are the query's in names, shapes and dtypes, and finite,
    counts as accepted: weights are counts of replies. Others pass unchanged: they are faults
    of their nodes, which the strategy will see.
    """

    def __init__(
        self,
        grid: Grid,
        attack: VectorAttack,
        nodes: Collection[int],
        *,
        rule: Aggregator | None = None,
        sees: Literal["everything", "colluders"] = "everything",
        seed: int = 0,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
    ) -> None:
        if not isinstance(attack, VectorAttack) or isinstance(attack, type):
            fix = "pass for example Little(); a label flip is a transform of the data"
            raise ConfigError("attack", attack, "an attack on what is sent", fix)
        if isinstance(nodes, str) or not all(isinstance(node, int) for node in nodes):
            raise ConfigError("nodes", nodes, "a collection of node ids", "see grid.get_node_ids")
        check_choice("sees", sees, SEES, fix="pass 'everything'")
        if rule is None and needs_rule(attack):
            fix = "pass the strategy's own, or a strength that is not optimised"
            raise ConfigError("rule", None, f"a rule to optimise {attack} against", fix)
        check_integer("seed", seed, low=0, fix="pass for example seed=1")
        self._grid, self._attack, self._liars = grid, attack, frozenset(nodes)
        self._rule, self._sees, self._seed = rule, sees, seed
        self._keys = (arrayrecord_key, configrecord_key)
        self._traffic = Traffic()

    def __getattr__(self, name: str) -> Any:
        # Only what this class has not: clock, sleep, node_ids and the like.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._grid, name)

    def snapshot(self) -> tuple[Any, Traffic]:
        """Return a copy of the inner grid's world and of what was seen."""
        inner: Callable[[], Any] = self._grid.snapshot  # type: ignore[attr-defined]
        return inner(), deepcopy(self._traffic)

    def restore(self, world: tuple[Any, Traffic]) -> None:
        """Go on from a snapshot."""
        self._grid.restore(world[0])  # type: ignore[attr-defined]
        self._traffic = deepcopy(world[1])

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
        """Send messages, and take note of who is asked what."""
        listed = list(messages)
        ids = list(self._grid.push_messages(listed))
        self._note(listed, set(ids))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, the liars' rewritten."""
        # One by one: whose a reply is, only the id that was asked for tells.
        return [
            self._heard(message_id, reply)
            for message_id in message_ids
            for reply in self._grid.pull_messages([message_id])
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As the inner grid's, the liars' replies rewritten."""
        # Not the inner grid's: which reply answers which message, only the client says there.
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
            sleep(min(POLL, deadline - clock()))

    def _note(self, messages: Iterable[Message], sent: set[str]) -> None:
        for message in messages:
            trains = message.metadata.message_type.split(".")[0] == MessageType.TRAIN
            if trains and message.metadata.message_id in sent:
                arrays = message.content.array_records.get(self._keys[0]) or ArrayRecord()
                layout = Layout.of(tensors_of(arrays))
                asked = Asked(
                    message.metadata.dst_node_id, layout, base_model_of(message, *self._keys)
                )
                self._traffic.asked[message.metadata.message_id] = asked

    def _heard(self, message_id: str, reply: Message) -> Message:
        asked = self._traffic.asked.pop(message_id, None)
        said = None if asked is None else self._understood(reply, asked)
        if asked is None or said is None:
            return reply
        traffic, node_id, vector = self._traffic, asked.node_id, said.vector
        before = traffic.counts.get(node_id, 0)
        traffic.counts[node_id] = before + 1
        if node_id not in self._liars:
            traffic.honest[node_id] = vector
            return reply
        traffic.colluding[node_id] = vector
        crafted = self._attack.craft(vector, self._knowledge(node_id, before))
        memory = memory_of(self._attack)
        if memory > 0:
            traffic.history[node_id] = (*traffic.history.get(node_id, ()), vector)[-memory:]
        reply.content[self._keys[0]] = said.with_vector(crafted)
        return reply

    def _understood(self, reply: Message, asked: Asked) -> PayloadVector | None:
        """Return what a reply says; None if it is none that could be accepted."""
        try:
            if not reply.has_content():
                return None
            arrays = read_arrays(reply.content.array_records[self._keys[0]], asked.layout)
            said = PayloadVector.of(arrays, asked.start)
            vector = said.vector
            return said if vector.numel() and bool(vector.isfinite().all()) else None
        except Exception:  # a record that breaks its own class is a fault of its node too
            return None

    def _knowledge(self, node_id: int, before: int) -> Knowledge:
        """Return what a liar knows; its own reply already counts."""
        traffic = self._traffic
        seen = traffic.honest if self._sees == "everything" else traffic.colluding
        lying = sum(count for node, count in traffic.counts.items() if node in self._liars)
        total = sum(traffic.counts.values())
        counts = [traffic.counts[node] for node in seen]
        return Knowledge(
            rows=torch.stack(list(seen.values())) if seen else None,
            weights=torch.tensor(counts, dtype=torch.int64) if seen else None,
            honest_weight=total - lying,
            byzantine_weight=lying,
            rule=self._rule,
            history=traffic.history.get(node_id, ()),
            reply=before,
            # Liars draw differently, in the order in which they were first heard.
            seed=self._seed + 1_000_003 * list(traffic.counts).index(node_id),
        )
