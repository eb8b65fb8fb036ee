"""AsyncRobust: the Flower strategy whose loop is driven by arrivals. No mathematics here."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from logging import getLogger

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_byzasync import records
from flwr_byzasync.aggregators import Aggregator
from flwr_byzasync.errors import ConfigError, Reason, check_choice, check_integer, check_number
from flwr_byzasync.events import due_nodes, on_clock, on_connected, on_reply, on_sent, on_unsent
from flwr_byzasync.optimizers import Optimizer
from flwr_byzasync.progress import RoundLog, Statistics, statistics, weighted_metrics
from flwr_byzasync.state import Policy, Rejected, ServerState, Update, begin, quorum
from flwr_byzasync.transitions import Status

logger = getLogger("flwr")

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
PAYLOADS = ("momentum",)
"""What a reply can be: the vector of our own client, momentum or μ² applied on the node."""


@dataclass
class _Run:
    """What one run of the loop works with."""

    grid: Grid
    state: ServerState
    config: ConfigRecord
    deadline: float
    round: int = 1
    connected: tuple[int, ...] = ()
    inbox: deque[Message] = field(default_factory=deque)


class AsyncRobust(Strategy):
    """Asynchronous Byzantine-robust training: every accepted reply makes a step.

    Each accepted reply replaces that node's row, is counted, and all rows are aggregated with
    the counts as weights; the optimizer makes one step against the result, and the node is sent
    its next query point at once. Nobody waits for anybody.

    Parameters
    ----------
    aggregator : Aggregator
        The robust rule, called as ``rule(rows, weights)``.
    optimizer : Optimizer
        The server's step, for example ``AnyTimeSGD(lr=0.01, gamma=0.1)``.
    min_nodes : int, optional
        Distinct nodes that must have replied before the first step, >= 1. None waits for every
        node of the start that is still there, and for more than half of them in any case.
    updates_per_round : int, optional
        Accepted replies that make a round, >= 1: evaluation and logging happen at its end. None
        takes the number of nodes connected at the start.
    buffers : collection of str
        Names of the initial arrays that are no parameters, such as batch-norm statistics; a
        ``state_dict`` does not say which they are. Floating ones follow the weighted median of
        the nodes' values; integer arrays are never averaged.
    payload : {"momentum"}
        What a reply is: the vector that a `client_app` sends.
    shut_after : int, default 5
        Unusable replies in a row after which a node is not asked again, >= 1.
    reply_timeout : float, default 600.0
        Seconds after which a message counts as unanswered, in (0, inf).
    poll_interval : float, default 0.02
        Seconds between two looks at the network when nothing arrived, in (0, inf).
    device : str or torch.device, default "cpu"
        Where rows are kept and aggregated.
    arrayrecord_key, configrecord_key : str
        Names of the records in messages, as in Flower's own strategies.
    clock, sleep : callable
        Seconds of a monotonic clock, and a way to wait; a test passes its own.

    Raises
    ------
    ConfigError
        If a setting is out of range.

    Notes
    -----
    Dahan and Levy 2024, arXiv 2501.09621, algorithm 2. A reply that cannot be used is counted
    with a `Reason` and leaves the model bit-identical. Weights are the server's own counts;
    nothing that a client reports enters a formula.

    Examples
    --------
    >>> from flwr_byzasync.aggregators import CTMA, GeometricMedian
    >>> from flwr_byzasync.optimizers import AnyTimeSGD
    >>> strategy = AsyncRobust(
    ...     aggregator=CTMA(GeometricMedian(), byz_fraction=0.4),
    ...     optimizer=AnyTimeSGD(lr=0.01, gamma=0.1),
    ...     min_nodes=9,
    ... )
    """

    def __init__(
        self,
        aggregator: Aggregator,
        optimizer: Optimizer,
        *,
        min_nodes: int | None = None,
        updates_per_round: int | None = None,
        buffers: Iterable[str] = (),
        payload: str | None = None,
        shut_after: int = 5,
        reply_timeout: float = 600.0,
        poll_interval: float = 0.02,
        device: str | torch.device = "cpu",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not callable(aggregator) or isinstance(aggregator, type):
            fix = "pass for example CTMA(GeometricMedian(), byz_fraction=0.4)"
            raise ConfigError("aggregator", aggregator, "a rule called as rule(rows, weights)", fix)
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, type):
            fix = "pass for example AnyTimeSGD(lr=0.01, gamma=0.1)"
            raise ConfigError("optimizer", optimizer, "an object with init and step", fix)
        for name, count in (("min_nodes", min_nodes), ("updates_per_round", updates_per_round)):
            if count is not None:
                check_integer(name, count, low=1, fix="pass a positive number, or None")
        check_integer("shut_after", shut_after, low=1, fix="pass for example shut_after=5")
        for name, seconds in (("reply_timeout", reply_timeout), ("poll_interval", poll_interval)):
            check_number(name, seconds, low=0, closed="neither", fix="pass a time in seconds")
        self.aggregator = aggregator
        self.optimizer = optimizer
        self.policy = Policy(min_nodes, shut_after, float(reply_timeout))
        self.updates_per_round = updates_per_round
        self.buffers = buffers if isinstance(buffers, str) else tuple(buffers)
        self.payload = check_choice(
            "payload", payload or PAYLOADS[0], PAYLOADS, fix="leave it out or pass 'momentum'"
        )
        self.poll_interval = float(poll_interval)
        self.device = _usable_device(device)
        self.arrayrecord_key = _check_key("arrayrecord_key", arrayrecord_key)
        self.configrecord_key = _check_key("configrecord_key", configrecord_key)
        self._clock, self._sleep = clock, sleep
        self._state: ServerState | None = None
        self._handed_out: list[tuple[int, int, Message]] = []
        self._told: set[tuple[int, Reason]] = set()

    def summary(self) -> None:
        """Log the settings, as a tree."""
        policy, size = self.policy, self.updates_per_round
        quorum = "all nodes of the start" if policy.min_nodes is None else policy.min_nodes
        logger.info("\t├──> Aggregation:")
        logger.info("\t│\t├── Rule: %s", self.aggregator)
        logger.info("\t│\t├── Optimizer: %s", self.optimizer)
        logger.info("\t│\t└── Device: %s", self.device)
        logger.info("\t├──> Arrivals:")
        logger.info("\t│\t├── Replies in a round: %s", size or "nodes of the start")
        logger.info("\t│\t├── First step after replies of: %s", quorum)
        logger.info("\t│\t├── Message time limit: %g s", policy.reply_timeout)
        logger.info("\t│\t└── Shut after faults in a row: %d", policy.shut_after)
        logger.info("\t└──> Messages:")
        logger.info("\t\t├── Payload: '%s'", self.payload)
        logger.info("\t\t├── ArrayRecord key: '%s'", self.arrayrecord_key)
        logger.info("\t\t└── ConfigRecord key: '%s'", self.configrecord_key)

    def statistics(self) -> Statistics:
        """Return replies by node, staleness and rejected replies of the run so far.

        Returns
        -------
        Statistics
            A frozen snapshot; empty before a run.
        """
        return Statistics() if self._state is None else statistics(self._state)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Train for `num_rounds` rounds of accepted replies.

        Parameters
        ----------
        grid : Grid
            As a ServerApp is given it.
        initial_arrays : ArrayRecord
            The initial model, for example ``ArrayRecord(model.state_dict())``.
        num_rounds : int, default 3
            Rounds, >= 1.
        timeout : float, default 3600
            Longest time in seconds without an accepted reply. Then the run ends with what is
            there and says so; `Result` has fewer rounds than asked for.
        train_config : ConfigRecord, optional
            Sent with every query, beside our own ``byz.`` keys and ``server-round``.
        evaluate_config : ConfigRecord, optional
            Not used: evaluation is central, by `evaluate_fn`.
        evaluate_fn : callable, optional
            ``(round, arrays) -> MetricRecord or None``, called at round 0 and after each round.

        Returns
        -------
        Result
            Flower's own: final arrays, and metrics by round.

        Raises
        ------
        ConfigError
            If an argument is out of range; before any message is sent.
        """
        check_integer("num_rounds", num_rounds, low=1, fix="pass for example num_rounds=20")
        check_number("timeout", timeout, low=0, closed="neither", fix="pass a time in seconds")
        del evaluate_config
        state = self._begin(initial_arrays)
        logger.info("Starting %s strategy:", type(self).__name__)
        logger.info("\t├── Number of rounds: %d", num_rounds)
        logger.info(
            "\t├── Parameters: %d, buffers: %d",
            state.layout.parameters.size,
            state.layout.buffers.size + state.layout.counters.size,
        )
        self.summary()
        result = Result(arrays=initial_arrays)
        self._evaluate(0, result, evaluate_fn)
        config = ConfigRecord() if train_config is None else train_config
        run = _Run(grid, state, config, self._clock() + timeout)
        if not self._wait_for_nodes(run, timeout):
            return result
        size = self.updates_per_round or len(run.connected)
        log = RoundLog(num_rounds, size, self._clock())
        while run.round <= num_rounds:
            if not self._play_round(run, run.round * size, timeout):
                self._log_stalled(run, num_rounds, timeout)
                break
            result.arrays = self._arrays(run.state)
            metrics = weighted_metrics(run.state)
            if metrics:
                result.train_metrics_clientapp[run.round] = MetricRecord(dict(metrics))
            central = self._evaluate(run.round, result, evaluate_fn)
            logger.info("%s", log.line(run.round, run.state, central, self._clock()))
            run.deadline = self._clock() + timeout
            run.round += 1
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make one query for every connected node, for Flower's synchronous loop.

        The round hooks feed the same state as `start`, so the strategy also runs under
        ``Strategy.start`` and inside wrappers that call them.
        """
        state = self._begin(arrays) if self._state is None else self._state
        connected = tuple(grid.get_node_ids())
        self._state = state = on_connected(state, connected)
        due = due_nodes(state, connected, now=math.inf)
        self._handed_out = [
            (
                node_id,
                state.queries + k,
                self._query(state, node_id, state.queries + k, server_round, config),
            )
            for k, node_id in enumerate(due)
        ]
        return [message for _, _, message in self._handed_out]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies in, one step each; a node that did not reply has made a fault."""
        del server_round
        if self._state is None:
            return None, None
        state, now = self._state, self._clock()
        for node_id, query, message in self._handed_out:
            message_id = message.metadata.message_id
            if message_id:
                state = on_sent(state, node_id, message_id, query, now)
            else:
                state = on_unsent(state, node_id, now)
        for reply in replies:
            state = self._receive(state, reply)
        for message_id in list(state.book):
            state = on_reply(state, message_id, Rejected(Reason.EXPIRED), now)
        self._state, self._handed_out = state, []
        metrics = weighted_metrics(state)
        return self._arrays(state), MetricRecord(dict(metrics)) if metrics else None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return no messages: evaluation is central, by `evaluate_fn`."""
        del server_round, arrays, config, grid
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return None: no node was asked to evaluate."""
        del server_round, replies
        return None

    # --- the loop -----------------------------------------------------------------------------

    def _begin(self, initial_arrays: ArrayRecord) -> ServerState:
        if not isinstance(initial_arrays, ArrayRecord):
            fix = "pass for example ArrayRecord(model.state_dict())"
            raise ConfigError("initial_arrays", type(initial_arrays), "an ArrayRecord", fix)
        tensors = records.tensors_of(initial_arrays)
        self._state = begin(
            tensors, self.buffers, self.aggregator, self.optimizer, self.policy, self.device
        )
        return self._state

    def _wait_for_nodes(self, run: _Run, timeout: float) -> bool:
        """Wait until as many nodes are connected as the first step needs."""
        wanted, said = self.policy.min_nodes or 1, -1
        while True:
            run.connected = self._connected(run)
            if len(run.connected) >= wanted:
                return True
            if said != len(run.connected):
                said = len(run.connected)
                logger.info("Waiting for nodes: %d of %d are connected.", said, wanted)
            if self._clock() >= run.deadline:
                logger.error(
                    "Only %d of %d nodes connected within timeout=%g seconds: start more nodes, "
                    "or pass a smaller min_nodes.",
                    said,
                    wanted,
                    timeout,
                )
                return False
            self._sleep(min(1.0, 50 * self.poll_interval))

    def _play_round(self, run: _Run, target: int, timeout: float) -> bool:
        """Take replies in until `target` are accepted in all; False if they stop coming."""
        while run.state.accepted < target:
            if not run.inbox:
                self._look_around(run)
            if run.inbox:
                before = run.state.accepted
                run.state = self._receive(run.state, run.inbox.popleft())
                if run.state.accepted > before:
                    run.deadline = self._clock() + timeout
                self._ask_due(run)
            elif self._clock() >= run.deadline:
                return False
            else:
                self._sleep(self.poll_interval)
            self._state = run.state
        return True

    def _look_around(self, run: _Run) -> None:
        """See who is there, ask whoever is due, and pull what has arrived."""
        run.connected = self._connected(run)
        run.state = on_clock(on_connected(run.state, run.connected), self._clock())
        self._ask_due(run)
        run.inbox.extend(self._pull(run))

    def _connected(self, run: _Run) -> tuple[int, ...]:
        try:
            return tuple(run.grid.get_node_ids())
        except Exception as error:  # transport errors differ between releases
            logger.warning("The list of nodes could not be read: %s.", type(error).__name__)
            return run.connected

    def _ask_due(self, run: _Run) -> None:
        for node_id in due_nodes(run.state, run.connected, self._clock()):
            query = run.state.queries
            message = self._query(run.state, node_id, query, run.round, run.config)
            try:
                # One message a push: a grid may leave a refused message out of the ids that it
                # returns, so that positions mean nothing.
                sent = [key for key in run.grid.push_messages([message]) if key]
            except Exception as error:
                logger.warning("A query could not be sent: %s.", type(error).__name__)
                sent = []
            if sent:
                run.state = on_sent(run.state, node_id, str(sent[0]), query, self._clock())
            else:
                run.state = on_unsent(run.state, node_id, self._clock())

    def _pull(self, run: _Run) -> list[Message]:
        """Pull all replies that are there, each on its own if one makes the network code raise."""
        waiting = list(run.state.book)
        try:
            return list(run.grid.pull_messages(waiting)) if waiting else []
        except Exception as error:
            logger.warning("Replies could not be pulled: %s.", type(error).__name__)
        pulled: list[Message] = []
        raised: list[str] = []
        for message_id in waiting:
            try:
                pulled.extend(run.grid.pull_messages([message_id]))
            except Exception:
                raised.append(message_id)
        if len(raised) < len(waiting):
            # The network works, so these replies themselves cannot be taken apart.
            for message_id in raised:
                reply = Rejected(Reason.UNREADABLE)
                run.state = on_reply(run.state, message_id, reply, self._clock())
        return pulled

    def _receive(self, state: ServerState, reply: Message) -> ServerState:
        """Take one reply in; whose it is, the book of sent messages says."""
        message_id = reply.metadata.reply_to_message_id
        sent = state.book.get(message_id)
        if sent is None:
            content: Update | Rejected = Rejected(Reason.UNSOLICITED)
        else:
            content = records.decode_reply(
                reply,
                state.layout,
                self.device,
                sent.query,
                self.payload,
                self.arrayrecord_key,
                self.configrecord_key,
            )
        after = on_reply(state, message_id, content, self._clock())
        if sent is not None and isinstance(content, Rejected):
            self._log_rejected(after, sent.node_id, content)
        return after

    def _log_rejected(self, state: ServerState, node_id: int, rejected: Rejected) -> None:
        """Log a node's first fault of each kind, and that it is given up; a liar may not flood."""
        told = (node_id, rejected.reason)
        detail = f" ({rejected.detail})" if rejected.detail else ""
        if told not in self._told:
            self._told.add(told)
            reason = rejected.reason.value
            logger.warning("Reply of node %d not used: %s%s.", node_id, reason, detail)
        if state.nodes[node_id].status is Status.SHUT:
            faults = self.policy.shut_after
            logger.warning("Node %d is not asked again: %d faults in a row.", node_id, faults)

    def _query(
        self, state: ServerState, node_id: int, query: int, server_round: int, config: ConfigRecord
    ) -> Message:
        own = {
            records.QUERY: query,
            records.COUNT: state.nodes[node_id].accepted,
            records.PAYLOAD: self.payload,
            records.ROUND: server_round,
        }
        content = records.encode_query(
            state.layout,
            state.iterates.x,
            state.buffers,
            state.counters,
            {**config, **own},
            self.arrayrecord_key,
            self.configrecord_key,
        )
        return Message(content, dst_node_id=node_id, message_type=MessageType.TRAIN)

    def _arrays(self, state: ServerState) -> ArrayRecord:
        return records.model_record(state.layout, state.iterates.x, state.buffers, state.counters)

    def _evaluate(
        self, server_round: int, result: Result, evaluate_fn: EvaluateFn | None
    ) -> MetricRecord | None:
        if evaluate_fn is None:
            return None
        metrics = evaluate_fn(server_round, result.arrays)
        if metrics is not None:
            result.evaluate_metrics_serverapp[server_round] = metrics
        return metrics

    def _log_stalled(self, run: _Run, num_rounds: int, timeout: float) -> None:
        heard = sum(node.accepted > 0 for node in run.state.nodes.values())
        logger.error(
            "No reply was accepted for timeout=%g seconds: the run ends in round %d of %d with "
            "%d replies. %d nodes are connected, %d have replied, and the first step needs %d; "
            "rejected replies: %s.",
            timeout,
            run.round,
            num_rounds,
            run.state.accepted,
            len(run.connected),
            heard,
            quorum(run.state),
            {reason.name: count for reason, count in run.state.reasons.items()} or "none",
        )


def _usable_device(device: str | torch.device) -> torch.device:
    fix = "pass 'cpu', or 'cuda' where torch.cuda.is_available()"
    try:
        usable = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError("device", device, "the name of a torch device", fix) from None
    if usable.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", str(device), "a device of this machine", fix)
    return usable


def _check_key(name: str, key: object) -> str:
    if not isinstance(key, str) or not key or key in (records.BUFFERS, records.METRICS):
        legal = f"a name other than {records.BUFFERS!r} and {records.METRICS!r}"
        raise ConfigError(name, key, legal, "leave it out or pass for example 'arrays'")
    return key
