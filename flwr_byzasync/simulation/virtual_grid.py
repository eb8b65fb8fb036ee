"""VirtualGrid: real ClientApps in this process on a virtual clock, the same bits every time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from types import SimpleNamespace, TracebackType
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from flwr_byzasync._checks import check_integer
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.simulation.arrivals import ArrivalProcess
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
from flwr_byzasync.wire.flower_compat import ClientAppCallable, pretend_task, stamp_message

RUN_ID = 1
SUPERLINK = 1
"""Node id of the SuperLink, the source of its error replies."""
FIRST_NODE_ID = 100
"""Node ids are this plus the partition-id: nobody can take one for the other unnoticed."""
RAISED, UNAVAILABLE, NODE_GONE = 2, 3, 5
"""Flower's error codes."""


class VirtualGrid(Grid):
    """A Flower Grid that drives a ClientApp in this process on a virtual clock.

    A discrete-event simulation: a query travels, waits until its node is free, is computed,
    and the reply travels back; or an arrival process says whose reply is next. Nothing sleeps,
    nothing runs in parallel, and no draw depends on anything but (seed, partition-id, number of
    the message), so that the same seed gives the same bits.

    Parameters
    ----------
    app : ClientApp or callable
        ``(message, context) -> message``. Called when the reply is delivered.
    nodes : int or sequence of VirtualNode
        How many alike, or each; partition-ids follow the order.
    run_config : mapping
        Given to the nodes' Context, and by `context` to a ServerApp's.
    seed : int, default 0
        Of the draws of times, >= 0.
    arrivals : ArrivalProcess, optional
        For example `PaperArrivals`: one reply a second, whose it is decided by the process.
        Then nodes have no times of their own.
    churn : sequence of Churn
        Who joins, leaves and crashes when.
    heartbeat : float, default 60.0
        Seconds after which a crashed node is missed, in (0, inf).

    Raises
    ------
    ConfigError
        If a setting is out of range, the script impossible, or nodes have times of their own or
        attack by delays although an arrival process decides.

    Notes
    -----
    Use it in a ``with`` block: a Message can only be made inside a Flower task, whose identity
    the block pretends. `AsyncRobust` takes its clock and its way to sleep from the grid.

    It keeps Flower's contract: an unknown node's message is left out of the ids returned; a
    reply comes once; a finished, unknown or expired id is answered by an error of code 3, a
    message of a node that went away by code 5, and a ClientApp that raised by code 2 (its
    changes of ``Context.state`` are dropped, as in Flower's simulation). Several messages for
    one node are computed one after another, as in a deployment. A reply's metadata is what its
    client wrote, as over HTTP, and ``created_at`` is the real clock's.

    Distributions, the arrival process and the app must be functions of what they are given:
    what they keep for themselves is in no snapshot.

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
        self._scene = Scenario(tuple(nodes), seed, arrivals, tuple(churn), heartbeat)
        self._world = initial_engine_state(self._scene)
        self._run: Any = SimpleNamespace(run_id=RUN_ID)
        self._task: AbstractContextManager[None] | None = None

    # --- a task, a clock, a copy --------------------------------------------------------------

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
        return tuple(FIRST_NODE_ID + partition for partition in range(len(self._scene.nodes)))

    def clock(self) -> float:
        """Return the seconds of the virtual clock."""
        return self._world.now

    def sleep(self, seconds: float) -> None:
        """Let time pass until something happens, and for `seconds` at most.

        A sleeper wakes when a reply arrives or a node comes or goes, so that replies are taken
        in one by one in the order of their arrival.
        """
        world, scene = self._world, self._scene
        advance_to(world, scene, min(world.now + max(seconds, 0.0), next_event(world, scene)))

    def context(self) -> Context:
        """Return a Context for a ServerApp: ``app(grid=grid, context=grid.context())``."""
        return Context(RUN_ID, SUPERLINK, {}, RecordDict(), dict(self._run_config))

    def snapshot(self) -> EngineState:
        """Return a copy of the whole world: time, nodes, their state, messages in flight."""
        return deepcopy(self._world)

    def restore(self, world: EngineState) -> None:
        """Go on from a snapshot, of this grid or of one made with the same settings.

        Raises
        ------
        ConfigError
            If the snapshot is of another number of nodes.
        """
        if not isinstance(world, EngineState) or len(world.nodes) != len(self._world.nodes):
            legal = f"a snapshot of a grid with {len(self._world.nodes)} nodes"
            raise ConfigError("world", type(world).__name__, legal, "make the same grid first")
        self._world = deepcopy(world)

    # --- Flower's interface -------------------------------------------------------------------

    def set_run(self, run: Any) -> None:
        """Take note of a run; there is only one."""
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
        """Return the nodes that the SuperLink believes to be there."""
        self._check_entered()
        listed = zip(self.node_ids, self._world.nodes, strict=True)
        return [node_id for node_id, node in listed if node.registered]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; those to unknown nodes are left out of the ids returned."""
        self._check_entered()
        world, pushed = self._world, []
        for message in messages:
            if message.metadata.reply_to_message_id or message.metadata.ttl <= 0:
                raise ValueError(f"neither a reply nor a message without time to live: {message}")
            message_id = f"m{world.sent}"
            world.sent += 1
            stamp_message(message, message_id, RUN_ID, SUPERLINK)
            partition = message.metadata.dst_node_id - FIRST_NODE_ID
            ttl = message.metadata.ttl
            if 0 <= partition < len(self._world.nodes):
                send(world, self._scene, message_id, deepcopy(message), partition, ttl)
                pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there, each once."""
        self._check_entered()
        answers = [self._answer(message_id) for message_id in dict.fromkeys(message_ids)]
        return [answer for answer in answers if answer is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and let time pass until all are answered, or for `timeout` seconds."""
        waiting = self.push_messages(messages)
        deadline = self._world.now + (math.inf if timeout is None else timeout)
        replies: list[Message] = []
        while True:
            replies += self.pull_messages(waiting)
            waiting = [message_id for message_id in waiting if message_id in self._world.deliveries]
            if not waiting or self._world.now >= deadline:
                return replies
            expiry = min(self._world.deliveries[message_id].expires for message_id in waiting)
            until = min(deadline, expiry, next_event(self._world, self._scene))
            advance_to(self._world, self._scene, until)

    # --- what a message becomes ---------------------------------------------------------------

    def _answer(self, message_id: str) -> Message | None:
        world, flight = self._world, self._world.deliveries.get(message_id)
        if flight is None:
            return _error(message_id, UNAVAILABLE, "no such message, or its reply was pulled")
        if world.now >= flight.expires:
            # Its node does not know: it works all the same, and what it remembers stays.
            self._compute_up_to(flight)
            del world.deliveries[message_id]
            return _error(message_id, UNAVAILABLE, "the message expired")
        if flight.arrives <= world.now and not flight.lost:
            self._compute_up_to(flight)
            reply: Message = world.deliveries.pop(message_id).reply
            return reply
        if not world.nodes[flight.node].registered:
            del world.deliveries[message_id]
            return _error(message_id, NODE_GONE, "the node is not connected")
        return None

    def _compute_up_to(self, flight: Delivery) -> None:
        for each in pending_before(self._world, flight):
            each.reply = self._compute(each)

    def _compute(self, flight: Delivery) -> Message:
        node, node_id = self._world.nodes[flight.node], self.node_ids[flight.node]
        own = {"partition-id": flight.node, "num-partitions": len(self._scene.nodes)}
        # Mods must not sleep for an attack's delay: this clock does not see them sleep.
        given = self._scene.nodes[flight.node].node_config
        config = {**given, **own, "virtual-clock": True}
        # Copies, as if they had travelled: a node can neither reach into the server's objects
        # nor keep half of what it changed before it raised.
        state = deepcopy(node.states.get(flight.incarnation)) or RecordDict()
        context = Context(RUN_ID, node_id, config, state, dict(self._run_config))
        query = deepcopy(flight.query)
        with pretend_task(RUN_ID, node_id):
            try:
                reply = self._app(query, context)
                if not isinstance(reply, Message):
                    raise TypeError(f"the ClientApp returned {type(reply).__name__}, no Message")
                copied, state = deepcopy(reply), deepcopy(context.state)
            except (Exception, SystemExit) as error:
                return Message(Error(code=RAISED, reason=_told(error)), reply_to=flight.query)
        node.states[flight.incarnation] = state
        return copied

    def _check_entered(self) -> None:
        if self._task is None:
            raise RuntimeError(
                "A VirtualGrid works only inside its block: write `with VirtualGrid(...) as grid:` "
                "around everything that uses it."
            )


def _told(error: BaseException) -> str:
    """Return an exception in Flower's words; its own text may fail as well."""
    try:
        return f"{type(error)}:<'{error}'>"
    except Exception:
        return f"{type(error)}"


def _error(message_id: str, code: int, reason: str) -> Message:
    """Return an error reply of the SuperLink; of an unknown message only the id is known."""
    query = Message(RecordDict(), dst_node_id=SUPERLINK, message_type="system")
    stamp_message(query, message_id, RUN_ID, SUPERLINK)
    return Message(Error(code=code, reason=reason), reply_to=query)
