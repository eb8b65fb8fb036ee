"""AsyncRobust: the Flower strategy whose loop is driven by arrivals. No mathematics here."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from logging import getLogger
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_byzasync import records
from flwr_byzasync.aggregators import Aggregator
from flwr_byzasync.arguments import (
    check_call,
    check_key,
    check_names,
    check_parts,
    check_resume,
    usable_device,
)
from flwr_byzasync.checkpoint import Checkpoints
from flwr_byzasync.errors import ConfigError, Reason, check_choice, check_integer, check_number
from flwr_byzasync.events import due_nodes, on_connected, on_sent, on_unsent
from flwr_byzasync.loop import ArrivalLoop
from flwr_byzasync.optimizers import Optimizer
from flwr_byzasync.progress import Statistics, statistics, weighted_metrics
from flwr_byzasync.records import Wire
from flwr_byzasync.session import Session
from flwr_byzasync.simulation import clock_of
from flwr_byzasync.snapshot import identity_of
from flwr_byzasync.state import Policy, Rejected, begin
from flwr_byzasync.training import EvaluateFn, Training
from flwr_byzasync.weights import WeightPolicy, weighting

logger = getLogger("flwr")

PAYLOADS = ("momentum",)
"""What a reply can be: the vector of our own client, momentum or μ² applied on the node."""


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
        node of the start that is still there, unless it takes ten times as long as the others,
        and for more than half of them in any case.
    min_available_nodes : int, optional
        Nodes that must be connected before the first query, >= 1: they are the nodes of the
        start. None takes `min_nodes` or, as FedAvg does, 2. In a deployment nodes connect one
        by one: pass how many you expect, or the first ones, honest or not, start alone.
    updates_per_round : int, optional
        Accepted replies that make a round, >= 1: evaluation and logging happen at its end. None
        takes the number of nodes connected at the start. The first round lasts until the first
        step, however many replies that takes.
    buffers : collection of str
        Names of the initial arrays that are no parameters, such as batch-norm statistics; a
        ``state_dict`` does not say which they are. Floating ones follow the weighted median of
        the nodes' values; integer arrays are never averaged.
    payload : {"momentum"}
        What a reply is: the vector that a `client_app` sends.
    weights : {"counts", "uniform", "staleness"} or WeightPolicy, default "counts"
        What a row weighs: its node's accepted replies s_i, 1, ``s_i (1 + τ_i)^−½`` with τ_i
        the server steps since its query was sent, or a policy of your own, for example
        ``StalenessDiscount(power=1.0)``.
    max_share : float, optional
        Largest share of all weight that one node may hold, in (0, 1]: heavier rows are cut to
        one common weight. f liars then hold at most ``f·max_share``, however fast they answer;
        without it a liar that does not compute may buy any share. With fewer than
        1/max_share nodes all weigh the same. A rule is called from scratch while the cap cuts.
        A node is what the SuperLink calls one: where SuperNodes need no registered key, a liar
        may come back under new ids, each with a share of its own.
    max_pace : float, optional
        How many times as often as the median node a node may be asked, in [1, inf). Every
        reply makes a step, so that without it a liar that does not compute moves the model many
        times between two honest replies, towards rows that are old by then. Honest nodes that
        are faster than that wait.
    below_min_nodes : {"continue", "wait"}, default "continue"
        What happens after the first step while fewer than `min_nodes` answer, or no more than
        half of the nodes of the start where that is None. "wait" takes replies in without a
        step and does not ask again who answers, until enough do or `timeout` ends the run.
    lost_rows : {"keep", "drop"}, default "keep"
        What becomes of the row of a node that left or is silent: it stays with the weight it
        has, or is forgotten until the node replies again, which brings its count back.
    shut_after : int, default 5
        Unusable replies in a row after which a node is shut, >= 1. It is asked once more after
        `reply_timeout`: a usable reply makes it an ordinary node again, another unusable one
        shuts it for twice as long, and so on up to 64 times.
    reply_timeout : float, default 600.0
        Seconds after which a message counts as unanswered, in (0, inf). A node that has replied
        is given ten times its own median reply time, if that is less.
    min_reply_timeout : float, default 60.0
        Seconds that a message is given at least, in (0, inf), or `reply_timeout` if that is
        less: the larger of the two for one limit that follows nobody's pace.
    poll_interval : float, default 0.1
        Seconds between two looks at the network when nothing arrived, in (0, inf). Simulated
        nodes look for messages every 0.1 s, in the order of their partition-ids: looking much
        more often than they do lets the first of them answer more often than the last.
    device : str or torch.device, default "cpu"
        Where rows are kept and aggregated.
    checkpoints : Checkpoints, optional
        Where and how often `start` writes the run down, and how many copies are kept. It does so
        as well when the run ends, and on SIGINT and SIGTERM where they can be caught.
    resume : bool, default False
        Whether `start` goes on with the run in that folder, from its newest whole checkpoint;
        without one it begins at the start. Model, rule and optimizer must be the same. False
        refuses a folder that holds a run.
    arrayrecord_key, configrecord_key : str
        Names of the records in messages, as in Flower's own strategies.
    clock, sleep : callable, optional
        Seconds of a monotonic clock, and a way to wait. None takes the grid's own where it has
        them, as `VirtualGrid` does, and this machine's elsewhere.

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
        min_available_nodes: int | None = None,
        updates_per_round: int | None = None,
        buffers: Iterable[str] = (),
        payload: str | None = None,
        weights: str | WeightPolicy = "counts",
        max_share: float | None = None,
        max_pace: float | None = None,
        below_min_nodes: str = "continue",
        lost_rows: str = "keep",
        shut_after: int = 5,
        reply_timeout: float = 600.0,
        min_reply_timeout: float = 60.0,
        poll_interval: float = 0.1,
        device: str | torch.device = "cpu",
        checkpoints: Checkpoints | None = None,
        resume: bool = False,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        check_parts(aggregator, optimizer)
        self.policy = Policy(
            min_nodes,
            shut_after,
            reply_timeout,
            min_reply_timeout,
            below_min_nodes,
            lost_rows,
            max_pace,
        )
        fix = "pass a positive number, or None"
        for name, count in (
            ("min_available_nodes", min_available_nodes),
            ("updates_per_round", updates_per_round),
        ):
            if count is not None:
                check_integer(name, count, low=1, fix=fix)
        fix = "pass a time in seconds"
        check_number("poll_interval", poll_interval, low=0, closed="neither", fix=fix)
        self.aggregator, self.optimizer = aggregator, optimizer
        self.weights = weighting(weights, max_share)
        self.min_available_nodes = min_available_nodes or min_nodes or 2
        self.updates_per_round = updates_per_round
        self.buffers = check_names("buffers", buffers)
        self.poll_interval = float(poll_interval)
        self.device = usable_device(device)
        taken = (records.BUFFERS, records.METRICS)
        fix = "leave it out or pass 'momentum'"
        self._wire = Wire(
            check_choice("payload", PAYLOADS[0] if payload is None else payload, PAYLOADS, fix=fix),
            check_key("arrayrecord_key", arrayrecord_key, taken),
            check_key("configrecord_key", configrecord_key, (*taken, arrayrecord_key)),
        )
        self.checkpoints, self.resume = check_resume(checkpoints, resume)
        check_call("clock", clock)
        check_call("sleep", sleep)
        self._clock, self._sleep = clock, sleep
        self._session: Session | None = None
        self._handed_out: list[tuple[int, int, Message]] = []
        self._returned: ArrayRecord | None = None

    def summary(self) -> None:
        """Log the settings, as a tree."""
        policy, size = self.policy, self.updates_per_round
        quorum = "all nodes of the start" if policy.min_nodes is None else policy.min_nodes
        logger.info("\t├──> Aggregation:")
        logger.info("\t│\t├── Rule: %s", self.aggregator)
        logger.info("\t│\t├── Weights: %s", self.weights)
        logger.info("\t│\t├── Rows of lost nodes: %s", policy.lost_rows)
        logger.info("\t│\t├── Optimizer: %s", self.optimizer)
        logger.info("\t│\t└── Device: %s", self.device)
        logger.info("\t├──> Arrivals:")
        logger.info("\t│\t├── Replies in a round: %s", size or "nodes of the start")
        logger.info("\t│\t├── First query when connected: %d nodes", self.min_available_nodes)
        logger.info("\t│\t├── First step after replies of: %s", quorum)
        logger.info("\t│\t├── With fewer later: %s", policy.below_min_nodes)
        logger.info("\t│\t├── Most replies of one node: %s", _pace(policy.max_pace))
        logger.info("\t│\t├── Message time limit: %g s at most", policy.reply_timeout)
        logger.info("\t│\t└── Shut after faults in a row: %d", policy.shut_after)
        logger.info("\t├──> Checkpoints: %s", self.checkpoints)
        logger.info("\t└──> Messages:")
        logger.info("\t\t├── Payload: '%s'", self._wire.payload)
        logger.info("\t\t├── ArrayRecord key: '%s'", self._wire.arrayrecord_key)
        logger.info("\t\t└── ConfigRecord key: '%s'", self._wire.configrecord_key)

    def statistics(self) -> Statistics:
        """Return replies by node, staleness and rejected replies of the run so far.

        Returns
        -------
        Statistics
            A frozen snapshot; empty before a run.
        """
        return Statistics() if self._session is None else statistics(self._session.state)

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
            Longest time in seconds without an accepted reply, and before the first step. Then
            the run ends with what is there and says so, and so it does at once when every node
            is shut; `Result` has fewer rounds than asked for.
        train_config : ConfigRecord, optional
            Sent with every query, beside our own ``byz.`` keys and ``server-round``.
        evaluate_config : ConfigRecord, optional
            Not used: evaluation is central, by `evaluate_fn`.
        evaluate_fn : callable, optional
            ``(round, arrays) -> MetricRecord or None``, called at round 0 and after each round;
            in a run that goes on, not again for rounds that are finished.

        Returns
        -------
        Result
            Flower's own: final arrays, and metrics by round.

        Raises
        ------
        ConfigError
            If an argument is out of range, or the run in the folder of checkpoints cannot be
            gone on with; before any message is sent.
        """
        check_integer("num_rounds", num_rounds, low=1, fix="pass for example num_rounds=20")
        check_number("timeout", timeout, low=0, closed="neither", fix="pass a time in seconds")
        del evaluate_config
        if train_config is not None and not isinstance(train_config, ConfigRecord):
            fix = "pass for example ConfigRecord({'lr': 0.1})"
            raise ConfigError("train_config", train_config, "a ConfigRecord or None", fix)
        config = {} if train_config is None else dict(train_config)
        session = self._begin(initial_arrays, grid)
        layout = session.state.layout
        logger.info("Starting %s strategy:", type(self).__name__)
        logger.info("\t├── Number of rounds: %d", num_rounds)
        logger.info("\t├── Parameters: %d", layout.parameters.size)
        logger.info("\t├── Buffers: %d", layout.buffers.size + layout.counters.size)
        self.summary()
        result = Result(arrays=initial_arrays)
        identity = identity_of(session.state, self.aggregator, self._wire.payload)
        run_id = _run_id(grid)
        training = Training(
            session, result, num_rounds, evaluate_fn, self.checkpoints, identity, run_id
        )
        if self.checkpoints is not None:
            self.checkpoints.prepare()
        with self.checkpoints.claim() if self.checkpoints else nullcontext():
            training.recover(self.resume)
            self._train(training, grid, config, timeout)
        return result

    def _train(
        self, training: Training, grid: Grid, config: dict[str, Any], timeout: float
    ) -> None:
        session = self._session
        assert session is not None
        sleep = self._sleep or clock_of(grid)[1]
        loop = ArrivalLoop(
            session, grid, config, timeout, sleep, self.poll_interval, training.between
        )
        training.play(loop, self.min_available_nodes, self.updates_per_round)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make one query for every connected node, for Flower's synchronous loop.

        The round hooks feed the same state as `start`, so the strategy also runs under
        ``Strategy.start``.

        Raises
        ------
        ConfigError
            If the model is not the one that `aggregate_train` returned: whoever changed it in
            between, a wrapper that adds noise for example, would change nothing. Or if there
            are `checkpoints`: only `start` writes them.
        """
        if self.checkpoints is not None:
            legal = "None under Flower's synchronous loop, which is not written down"
            raise ConfigError("checkpoints", self.checkpoints, legal, "call start, or leave it out")
        session = self._session
        if session is None or server_round == 1:
            session = self._begin(arrays, grid)
        elif arrays is not self._returned:
            legal = "the very record that aggregate_train returned"
            fix = "do not wrap this strategy in one that changes the model between rounds"
            raise ConfigError("arrays", type(arrays), legal, fix)
        connected = tuple(grid.get_node_ids())
        session.state = on_connected(session.state, connected)
        self._handed_out = []
        for node_id in due_nodes(session.state, connected, session.clock(), at_once=True):
            query = session.state.queries + len(self._handed_out)
            message = session.query(node_id, query, server_round, dict(config))
            self._handed_out.append((node_id, query, message))
        return [message for _, _, message in self._handed_out]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies in, one step each; a node that did not reply has made a fault."""
        del server_round
        session = self._session
        if session is None:
            return None, None
        now = session.clock()
        for node_id, query, message in self._handed_out:
            message_id = message.metadata.message_id
            if message_id:
                session.state = on_sent(session.state, node_id, message_id, query, now)
            else:
                session.state = on_unsent(session.state, node_id, now)
        self._handed_out = []
        for reply in replies:
            session.receive(reply.metadata.reply_to_message_id, reply)
        for message_id in list(session.state.book):
            session.settle(message_id, Rejected(Reason.EXPIRED))
        metrics = weighted_metrics(session.state)
        self._returned = session.arrays()
        return self._returned, MetricRecord(dict(metrics)) if metrics else None

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

    def _begin(self, initial_arrays: ArrayRecord, grid: Grid) -> Session:
        if not isinstance(initial_arrays, ArrayRecord):
            fix = "pass for example ArrayRecord(model.state_dict())"
            raise ConfigError("initial_arrays", type(initial_arrays), "an ArrayRecord", fix)
        tensors = records.tensors_of(initial_arrays)
        state = begin(
            tensors,
            self.buffers,
            self.aggregator,
            self.optimizer,
            self.policy,
            self.device,
            self.weights,
        )
        clock = self._clock or clock_of(grid)[0]
        self._session = Session(state, self._wire, self.device, clock)
        return self._session


def _run_id(grid: Grid) -> int:
    """Return Flower's id of the run; 0 where a grid knows of none."""
    try:
        return int(grid.run.run_id)
    except Exception:
        return 0


def _pace(most: float | None) -> str:
    return "as many as it sends" if most is None else f"{most:g} times the median node's"
