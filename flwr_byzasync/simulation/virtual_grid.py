"""VirtualGrid: real ClientApps in this process on a virtual clock, bit for bit reproducible."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from types import SimpleNamespace, TracebackType
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from flwr_byzasync._checks import check_integer
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.simulation.arrivals import ArrivalProcess
from flwr_byzasync.simulation.client_runtime import (
    NODE_GONE,
    RUN_ID,
    SUPERLINK,
    UNAVAILABLE,
    run_client,
    superlink_error,
)
from flwr_byzasync.simulation.engine import (
    Delivery,
    EngineState,
    advance_to,
    initial_engine_state,
    next_event,
    pending_before,
    send,
)
from flwr_byzasync.simulation.federation import Churn, Scenario, VirtualNode
from flwr_byzasync.wire.flower_compat import (
    ClientAppCallable,
    message_ids_of,
    pretend_task,
    stamp_message,
)

FIRST_NODE_ID = 100
"""Node ids are this plus the partition-id, so that confusing the two is noticed."""


class VirtualGrid(Grid):
    """A Flower Grid that drives a ClientApp in this process on a virtual clock.

    A discrete-event simulation: a query travels, waits until its node is free, is computed,
    and the reply travels back; or an arrival process chooses the next reply. Nothing sleeps,
    nothing runs in parallel, and draws depend on (seed, partition-id, number of the message)
    alone: the same seed gives the same bits.

    Parameters
    ----------
    app : ClientApp or callable
        ``(message, context) -> message``. Called when the reply is delivered.
    nodes : int or sequence of VirtualNode
        How many identical nodes, or each of them; partition-ids follow the order.
    run_config : mapping
        For the nodes' Context, and through `context` for a ServerApp's.
    seed : int, default 0
        Of the draws of times, >= 0.
    arrivals : ArrivalProcess, optional
        For example `PaperArrivals`: one reply a second, from the node that the process chooses.
        Nodes then have no times of their own.
    churn : sequence of Churn
        Which nodes join, leave and crash, and when.
    heartbeat : float, default 60.0
        Seconds after which the network notices a crash, in (0, inf).

    Raises
    ------
    ConfigError
        If a setting is out of range, the changes impossible, or nodes have times of their own or
        attack by delays although an arrival process decides.

    Notes
    -----
    Use it in a ``with`` block: a Message can only be created inside a Flower task, and the block
    pretends to be one. `AsyncRobust` uses this grid's clock.

    It keeps Flower's contract: a message to an unknown node is left out of the ids returned; a
    reply is returned once; a finished, unknown or expired id gives an error of code 3, a message
    to a node that left code 5, and a ClientApp that raised code 2 (its changes of
    ``Context.state`` are dropped, as in Flower's simulation). Messages to one node are computed
    one after another, as in a deployment. A reply's metadata is what its client wrote, as over
    HTTP, and ``created_at`` comes from the real clock.

    Distributions, the arrival process and the app must depend on their arguments alone: state of
    their own is in no snapshot.

    Examples
    --------
    >>> def app(message, context):
    ...     return Message(RecordDict(), reply_to=message)
    >>> with VirtualGrid(app, nodes=2) as grid:
    ...     query = Message(RecordDict(), dst_node_id=grid.node_ids[1], message_type="train")
    ...     ids = grid.push_messages([query])
    ...     early = grid.pull_messages(ids)
    ...     grid.sleep(1.0)
    ...     late = grid.pull_messages(ids)
    >>> len(early), len(late)
    (0, 1)
    """

    def __init__(
        self,
        app: ClientAppCallable,
        nodes: int | Sequence[VirtualNode],
        *,
        run_config: Mapping[str, bool | float | int | str] | None = None,
        seed: int = 0,
        arrivals: ArrivalProcess | None = None,
        churn: Sequence[Churn] = (),
        heartbeat: float = 60.0,
    ) -> None:
        if not callable(app):
            raise ConfigError("app", app, "a ClientApp", "pass for example client_app(...)")
        if not isinstance(nodes, Sequence):
            nodes = [VirtualNode()] * check_integer("nodes", nodes, low=1, fix="pass a count")
        self._app, self._run_config = app, dict(run_config or {})
        self._scenario = Scenario(tuple(nodes), seed, arrivals, tuple(churn), heartbeat)
        self._engine = initial_engine_state(self._scenario)
        self._run: Any = SimpleNamespace(run_id=RUN_ID)
        self._task: AbstractContextManager[None] | None = None

    def __enter__(self) -> "VirtualGrid":
        if self._task is not None:
            raise RuntimeError("This VirtualGrid's block was entered before and is not left yet.")
        self._task = pretend_task(RUN_ID, SUPERLINK)
        self._task.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.__exit__(kind, error, trace)

    @property
    def node_ids(self) -> tuple[int, ...]:
        """Ids of all nodes, present or not, by partition-id."""
        return tuple(FIRST_NODE_ID + partition for partition in range(len(self._scenario.nodes)))

    def clock(self) -> float:
        """Return the seconds of the virtual clock."""
        return self._engine.now

    def sleep(self, seconds: float) -> None:
        """Let time pass until the next event, and for `seconds` at most.

        A sleeper wakes when a reply arrives or a node joins or leaves, so that replies are
        processed one by one in the order of arrival.
        """
        engine, scenario = self._engine, self._scenario
        advance_to(
            engine, scenario, min(engine.now + max(seconds, 0.0), next_event(engine, scenario))
        )

    def context(self) -> Context:
        """Return a Context for a ServerApp: ``app(grid=grid, context=grid.context())``."""
        return Context(RUN_ID, SUPERLINK, {}, RecordDict(), dict(self._run_config))

    def snapshot(self) -> EngineState:
        """Return a copy of everything: time, nodes, their state, messages in flight."""
        return deepcopy(self._engine)

    def restore(self, snapshot: EngineState) -> None:
        """Continue from a snapshot of this grid, or of one with the same settings.

        Raises
        ------
        ConfigError
            If the snapshot is of another number of nodes.
        """
        if not isinstance(snapshot, EngineState) or len(snapshot.nodes) != len(self._engine.nodes):
            legal = f"a snapshot of a grid with {len(self._engine.nodes)} nodes"
            raise ConfigError(
                "snapshot", type(snapshot).__name__, legal, "make the same grid first"
            )
        self._engine = deepcopy(snapshot)

    # --- Flower's interface -------------------------------------------------------------------

    def set_run(self, run: Any) -> None:
        """Store the run; there is only one."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message; Flower itself prefers the constructor."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the nodes that the SuperLink believes to be connected."""
        self._check_entered()
        listed = zip(self.node_ids, self._engine.nodes, strict=True)
        return [node_id for node_id, node in listed if node.registered]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; those to unknown nodes are left out of the ids returned."""
        self._check_entered()
        engine, pushed = self._engine, []
        for message in messages:
            if message.metadata.reply_to_message_id or message.metadata.ttl <= 0:
                raise ValueError(f"neither a reply nor a message without time to live: {message}")
            message_id = f"m{engine.sent}"
            engine.sent += 1
            stamp_message(message, message_id, RUN_ID, SUPERLINK)
            partition = message.metadata.dst_node_id - FIRST_NODE_ID
            ttl = message.metadata.ttl
            if 0 <= partition < len(self._engine.nodes):
                send(engine, self._scenario, message_id, deepcopy(message), partition, ttl)
                pushed.append(message_id)
        return pushed

    def pull_messages(
        self, message_ids: Iterable[str] | None = None, **renamed: Iterable[str]
    ) -> list[Message]:
        """Return the replies that have arrived, each once."""
        self._check_entered()
        ids = dict.fromkeys(message_ids_of(message_ids, renamed))
        answers = [self._answer(message_id) for message_id in ids]
        return [answer for answer in answers if answer is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and let time pass until all are answered, or for `timeout` seconds."""
        waiting = self.push_messages(messages)
        deadline = self._engine.now + (math.inf if timeout is None else timeout)
        replies: list[Message] = []
        while True:
            replies += self.pull_messages(waiting)
            waiting = [
                message_id for message_id in waiting if message_id in self._engine.deliveries
            ]
            if not waiting or self._engine.now >= deadline:
                return replies
            expiry = min(self._engine.deliveries[message_id].expires for message_id in waiting)
            until = min(deadline, expiry, next_event(self._engine, self._scenario))
            advance_to(self._engine, self._scenario, until)

    # --- replies ------------------------------------------------------------------------------

    def _answer(self, message_id: str) -> Message | None:
        engine, delivery = self._engine, self._engine.deliveries.get(message_id)
        if delivery is None:
            return superlink_error(
                message_id, UNAVAILABLE, "no such message, or its reply was pulled"
            )
        if engine.now >= delivery.expires:
            # Its node does not know: it computes anyway, and keeps what it remembers.
            self._compute_up_to(delivery)
            del engine.deliveries[message_id]
            return superlink_error(message_id, UNAVAILABLE, "the message expired")
        if delivery.arrives <= engine.now and not delivery.lost:
            self._compute_up_to(delivery)
            reply: Message = engine.deliveries.pop(message_id).reply
            return reply
        if not engine.nodes[delivery.node].registered:
            del engine.deliveries[message_id]
            return superlink_error(message_id, NODE_GONE, "the node is not connected")
        return None

    def _compute_up_to(self, delivery: Delivery) -> None:
        for each in pending_before(self._engine, delivery):
            each.reply = self._compute(each)

    def _compute(self, delivery: Delivery) -> Message:
        node, scenario = self._engine.nodes[delivery.node], self._scenario
        own = {"partition-id": delivery.node, "num-partitions": len(scenario.nodes)}
        # Mods must not sleep for an attack's delay: this clock would not notice.
        config = {**scenario.nodes[delivery.node].node_config, **own, "virtual-clock": True}
        state = deepcopy(node.states.get(delivery.incarnation)) or RecordDict()
        node_id = self.node_ids[delivery.node]
        context = Context(RUN_ID, node_id, config, state, dict(self._run_config))
        reply, node.states[delivery.incarnation] = run_client(self._app, delivery.query, context)
        return reply

    def _check_entered(self) -> None:
        if self._task is None:
            raise RuntimeError(
                "A VirtualGrid works only inside its block: write `with VirtualGrid(...) as grid:`."
            )
