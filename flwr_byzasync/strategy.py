"""AsyncRobust: the Flower strategy whose loop is driven by arrivals. No mathematics here."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from logging import getLogger

import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from flwr_byzasync._checks import (
    check_call,
    check_count,
    check_integer,
    check_key,
    check_names,
    check_number,
    usable_device,
)
from flwr_byzasync._clock import clock_of
from flwr_byzasync.aggregators import CTMA, Aggregator, CoordinateWiseMedian
from flwr_byzasync.checkpoints.files import Checkpoints
from flwr_byzasync.checkpoints.snapshot import run_fingerprint
from flwr_byzasync.core.contribution import Reading
from flwr_byzasync.core.policy import Policy
from flwr_byzasync.core.statistics import Statistics, statistics
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.optimizers import SGD, Optimizer
from flwr_byzasync.server.arrival_loop import ArrivalLoop, poller_of
from flwr_byzasync.server.checkpointing import CheckpointManager
from flwr_byzasync.server.early_stopping import EarlyStop
from flwr_byzasync.server.evaluation import Evaluations, EvaluationSettings
from flwr_byzasync.server.metrics_aggregation import MetricsFn
from flwr_byzasync.server.round_hooks import RoundHooks
from flwr_byzasync.server.training import EvaluateFn, RoundEnd, RoundEndFn, Training
from flwr_byzasync.weights import WeightPolicy, weighting
from flwr_byzasync.wire.keys import BUFFERS, METRICS, PREVIOUS, MessageFormat

logger = getLogger("flwr")


class AsyncRobust(RoundHooks):
    """Asynchronous Byzantine-robust training: every accepted reply makes a step.

    ``AsyncRobust()`` takes the place of ``FedAvg()`` for ClientApps that return weights; with an
    `optimizer` it is the strategy of `client_app`.

    Each accepted reply replaces that node's row, is counted, and all rows are aggregated with
    the counts as weights; the optimizer makes one step against the result, and the node is sent
    its next query point at once. Nobody waits for anybody.

    Parameters
    ----------
    aggregator : Aggregator, optional
        The robust rule, called as ``rule(rows, weights)``. None takes
        ``CTMA(CoordinateWiseMedian(), 0.45)``: it is kept up to date from reply to reply, loses
        little without liars, and with nodes of equal pace the share of four liars in ten
        fluctuates around 0.4.
    optimizer : Optimizer, optional
        The server's step, for example ``AnyTimeSGD(lr=0.01, gamma=0.1)``. None takes
        ``SGD(lr=2.0, per_node=True)``, for models: each reply moves the model by 2/m of what m
        nodes say. With `delay_compensation` that is 0.8 of FedAvg's pace where nodes take small
        steps, and stable where they train to their optimum.
    min_nodes : int, optional
        Distinct nodes that must have replied before the first step, >= 1. None waits for every
        node of the start that is still there, unless it takes ten times as long as the others,
        and for more than half of them in any case.
    min_available_nodes : int, optional
        Nodes that must be connected before the first query, >= 1: they are the nodes of the
        start. None takes `min_nodes` or, as FedAvg does, 2. In a deployment nodes connect one
        by one: pass how many you expect, or the first ones, honest or not, start alone.
    min_train_nodes : int, optional
        As FedAvg has it: the larger of the two is taken.
    updates_per_round : int, optional
        Accepted replies that make a round, >= 1: evaluation and logging happen at its end. None
        takes the number of nodes connected at the start. The first round lasts until the first
        step, however many replies that takes.
    buffers : collection of str, optional
        Names of the initial arrays that are no parameters, for example ``buffer_names(model)``;
        a ``state_dict`` does not say which they are. None takes the running statistics of
        PyTorch's batch norms, known by the counter beside them. Floating ones follow the
        weighted median of the nodes' values; integer arrays are never averaged.
    payload : {"model", "momentum", "gradient"}, optional
        What a reply is. "model": weights, from ClientApps that know nothing of this package;
        what that node was sent minus what it returned is its vector. "momentum": the vector that
        a `client_app` sends. "gradient": a gradient alone, from `client_app` too; nodes keep no
        state. None takes "momentum" where an `optimizer` is given, else "model".
    correction : {"client", "server"}, default "client"
        Who applies μ²'s correction. "server" sends each node its last query too, for gradients
        at both points: ``payload="gradient"`` only, and twice the traffic.
    delay_compensation : float, optional
        c in [0, 1]: a model y that was trained from the point x_q has the vector
        ``x_q − y + c (x − x_q)``, x being where the server is by now. Replies are a round or
        two old; with c = ½ no age makes training swing up, with 0 even a step of 1.1/m may.
        None takes ½ where replies are models, and 0, the only legal value, elsewhere.
    momentum : float, default 0.0
        Share in [0, 1) of a node's former vector that the server keeps in its new one, where
        replies are models or gradients.
    beta : float or None, default 0.25
        With ``correction="server"``: weight in (0, 1] of a new gradient; None for 1/(s + 1).
    weights : {"counts", "uniform", "staleness"} or WeightPolicy, optional
        What a row weighs: its node's accepted replies s_i, 1, ``s_i (1 + τ_i)^−½`` with τ_i
        the server steps since its query was sent, or a policy of your own, for example
        ``StalenessDiscount(power=1.0)``. None takes "counts" where rows are momenta, whose noise
        falls with the count, and "uniform" where replies are models, each of which is as good as
        the first: the liars' share is then that of the nodes, whoever replies first.
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
    fraction_evaluate : float, optional
        Share of the connected nodes in [0, 1] that evaluate the model at the end of a round,
        while all go on training. None takes 1.0 where replies are models, as FedAvg does, and 0.0
        elsewhere. The run's end waits for answers, `reply_timeout` at most. A node whose first
        answer was no metrics is not asked again.
    min_evaluate_nodes : int, default 2
        Nodes that evaluate at least, >= 0; with fewer connected nobody does. Of two, one liar
        moves the median anywhere: three or more keep it among the others.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn : callable, optional
        ``(records, "num-examples") -> MetricRecord``, as in FedAvg. None takes the median, which
        one liar cannot distort: of what nodes reported last, weighted as their rows, and of
        evaluations, each node counting once. `flwr_byzasync.evaluation.mean_metrics` is a mean.
    early_stop : EarlyStop, optional
        When the run may end before its last round. This and the next two are for `start` alone:
        Flower's synchronous loop knows nothing of them, and is refused.
    on_round_end : callable, optional
        ``(round, arrays, metrics of evaluate_fn) -> None``, called at the end of each round.
    checkpoints : Checkpoints, optional
        Where and how often `start` writes the run down, and how many copies are kept. It does so
        as well when the run ends, and on SIGINT and SIGTERM where they can be caught.
    resume : bool, default False
        Whether `start` goes on with the run in that folder, from its newest whole checkpoint;
        without one it begins at the start. Model, rule and optimizer must be the same. False
        refuses a folder that holds a run.
    arrayrecord_key, configrecord_key : str
        Names of the records in messages, as in Flower's own strategies.
    fraction_train, weighted_by_key
        FedAvg's, refused: every node is asked (`max_pace`), and nothing that a client reports
        becomes a weight (`weights`).
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
    >>> drop_in = AsyncRobust(min_available_nodes=10)
    >>> strategy = AsyncRobust(
    ...     aggregator=CTMA(GeometricMedian(), byz_fraction=0.4),
    ...     optimizer=AnyTimeSGD(lr=0.01, gamma=0.1),
    ...     min_nodes=9,
    ... )
    """

    def __init__(
        self,
        aggregator: Aggregator | None = None,
        optimizer: Optimizer | None = None,
        *,
        min_nodes: int | None = None,
        min_available_nodes: int | None = None,
        min_train_nodes: int | None = None,
        updates_per_round: int | None = None,
        buffers: Iterable[str] | None = None,
        payload: str | None = None,
        correction: str = "client",
        delay_compensation: float | None = None,
        momentum: float = 0.0,
        beta: float | None = 0.25,
        weights: str | WeightPolicy | None = None,
        max_share: float | None = None,
        max_pace: float | None = None,
        below_min_nodes: str = "continue",
        lost_rows: str = "keep",
        shut_after: int = 5,
        reply_timeout: float = 600.0,
        min_reply_timeout: float = 60.0,
        poll_interval: float = 0.1,
        device: str | torch.device = "cpu",
        fraction_evaluate: float | None = None,
        min_evaluate_nodes: int = 2,
        train_metrics_aggr_fn: MetricsFn | None = None,
        evaluate_metrics_aggr_fn: MetricsFn | None = None,
        early_stop: EarlyStop | None = None,
        on_round_end: RoundEndFn | None = None,
        checkpoints: Checkpoints | None = None,
        resume: bool = False,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        fraction_train: float = 1.0,
        weighted_by_key: None = None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__()
        check_not_fedavg(fraction_train, weighted_by_key)
        drop_in = payload == "model" or (payload is None and optimizer is None)
        if delay_compensation is None:
            delay_compensation = 0.5 if drop_in else 0.0
        self.reading = Reading(
            ("model" if drop_in else "momentum") if payload is None else payload,
            correction,
            momentum,
            beta,
            delay_compensation,
        )
        self.aggregator = CTMA(CoordinateWiseMedian(), 0.45) if aggregator is None else aggregator
        self.optimizer = default_optimizer(self.reading) if optimizer is None else optimizer
        check_parts(self.aggregator, self.optimizer)
        self.policy = Policy(
            min_nodes,
            shut_after,
            reply_timeout,
            min_reply_timeout,
            below_min_nodes,
            lost_rows,
            max_pace,
            self.reading,
        )
        if weights is None:
            weights = "uniform" if drop_in else "counts"
        self.weights = weighting(weights, max_share)
        self.min_available_nodes = check_least(min_available_nodes, min_train_nodes, min_nodes)
        self.updates_per_round = check_count("updates_per_round", updates_per_round)
        self.buffers = None if buffers is None else check_names("buffers", buffers)
        fix = "pass a time in seconds"
        self.poll_interval = check_number(
            "poll_interval", poll_interval, low=0, closed="neither", fix=fix
        )
        self.device = usable_device(device)
        fraction = float(drop_in) if fraction_evaluate is None else fraction_evaluate
        self.evaluation = EvaluationSettings(fraction, min_evaluate_nodes, evaluate_metrics_aggr_fn)
        for name, call in (
            ("train_metrics_aggr_fn", train_metrics_aggr_fn),
            ("on_round_end", on_round_end),
            ("clock", clock),
            ("sleep", sleep),
        ):
            check_call(name, call)
        self.train_metrics_aggr_fn, self.on_round_end = train_metrics_aggr_fn, on_round_end
        self.early_stop = check_stop(early_stop)
        taken = (BUFFERS, PREVIOUS, METRICS)
        self._wire = MessageFormat(
            self.reading.payload,
            check_key("arrayrecord_key", arrayrecord_key, taken),
            check_key("configrecord_key", configrecord_key, (*taken, arrayrecord_key)),
        )
        self.checkpoints, self.resume = check_resume(checkpoints, resume)
        self._clock, self._sleep = clock, sleep

    def summary(self) -> None:
        """Log the settings, as a tree."""
        policy, size = self.policy, self.updates_per_round
        quorum = "all nodes of the start" if policy.min_nodes is None else policy.min_nodes
        logger.info("\t├──> Aggregation:")
        logger.info("\t│\t├── Rule: %s", self.aggregator)
        logger.info("\t│\t├── Weights: %s", self.weights)
        logger.info("\t│\t├── Rows of lost nodes: %s", policy.lost_rows)
        logger.info("\t│\t├── Optimizer: %s", self.optimizer)
        if self.reading.payload == "model":
            share = self.reading.delay_compensation
            logger.info("\t│\t├── Delay compensation: %g", share)
        logger.info("\t│\t└── Device: %s", self.device)
        logger.info("\t├──> Arrivals:")
        logger.info("\t│\t├── Replies in a round: %s", size or "nodes of the start")
        logger.info("\t│\t├── First query when connected: %d nodes", self.min_available_nodes)
        logger.info("\t│\t├── First step after replies of: %s", quorum)
        logger.info("\t│\t├── With fewer later: %s", policy.below_min_nodes)
        logger.info("\t│\t├── Most replies of one node: %s", _pace(policy.max_pace))
        logger.info("\t│\t├── Message time limit: %g s at most", policy.reply_timeout)
        logger.info("\t│\t└── Shut after faults in a row: %d", policy.shut_after)
        evaluation = self.evaluation
        logger.info("\t├──> Evaluation by nodes: fraction (%.2f)", evaluation.fraction)
        logger.info("\t│\t└── Minimum nodes: %d", evaluation.min_nodes)
        logger.info("\t├──> Checkpoints: %s", self.checkpoints)
        logger.info("\t└──> Messages:")
        logger.info("\t\t├── Payload: '%s'", self._wire.payload)
        logger.info("\t\t├── ArrayRecord key: '%s'", self._wire.arrayrecord_key)
        logger.info("\t\t└── ConfigRecord key: '%s'", self._wire.configrecord_key)

    def statistics(self) -> Statistics:
        """Return replies by node, staleness, rejected replies, and why a run ended early.

        Returns
        -------
        Statistics
            A frozen snapshot; empty before a run.
        """
        session = self._session
        return Statistics() if session is None else statistics(session.state, session.stop_reason)

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
            the run ends with what is there and says so. So it does at once when every node is
            shut before any has replied, or for longer than this, and when a step leaves the
            range of the model's numbers. `Result` has fewer rounds than asked for then, and
            ``statistics().gave_up`` is why.
        train_config : ConfigRecord, optional
            Sent with every query, beside ``server-round`` and, unless replies are models, our
            own ``byz.`` keys.
        evaluate_config : ConfigRecord, optional
            Sent with every question how good the model is, beside ``server-round``.
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
        fix = "pass for example num_rounds=20"
        num_rounds = check_integer("num_rounds", num_rounds, low=1, fix=fix)
        fix = "pass a time in seconds"
        timeout = check_number("timeout", timeout, low=0, closed="neither", fix=fix)
        check_call("evaluate_fn", evaluate_fn)
        configs = check_configs(train_config, evaluate_config)
        if self.early_stop and self.early_stop.metric is not None and evaluate_fn is None:
            legal, fix = "by time without an evaluate_fn", "pass evaluate_fn to start"
            raise ConfigError("early_stop", self.early_stop, legal, fix)
        session = self._begin(initial_arrays, grid)
        layout = session.state.layout
        logger.info("Starting %s strategy:", type(self).__name__)
        logger.info("\t├── Number of rounds: %d", num_rounds)
        logger.info("\t├── Parameters: %d", layout.parameters.size)
        logger.info("\t├── Buffers: %d", layout.buffers.size + layout.counters.size)
        self.summary()
        result, began = Result(arrays=initial_arrays), session.clock()
        identity = run_fingerprint(session.state, self.aggregator)
        logbook = CheckpointManager(session, result, self.checkpoints, identity, _run_id(grid))
        training = Training(
            session,
            result,
            num_rounds,
            RoundEnd(self._end_round, evaluate_fn, self.on_round_end, self.early_stop),
            logbook,
        )
        if self.checkpoints is not None:
            self.checkpoints.prepare()
        self._arrivals = True
        try:
            with self.checkpoints.claim() if self.checkpoints else nullcontext():
                logbook.recover(self.resume)
                self._train(training, grid, configs, timeout)
        finally:
            self._arrivals = False
        logger.info("Strategy execution finished in %.2fs", session.clock() - began)
        logger.info("Final results:")
        for line in str(result).splitlines():
            logger.info("\t%s", line)
        return result

    def _train(
        self,
        training: Training,
        grid: Grid,
        configs: tuple[ConfigRecord, ConfigRecord],
        timeout: float,
    ) -> None:
        session = self._session
        assert session is not None
        sleep = self._sleep or clock_of(grid)[1]
        loop = ArrivalLoop(
            session, grid, dict(configs[0]), timeout, sleep, self.poll_interval, training.on_idle
        )
        evaluations = Evaluations(
            self.evaluation,
            grid,
            configs[1],
            self._wire,
            session.clock,
            self.policy.reply_timeout,
            training.on_evaluated,
            poller_of(grid),
            self.poll_interval,
        )
        training.run(loop, evaluations, self.min_available_nodes, self.updates_per_round)


def check_configs(
    train_config: ConfigRecord | None, evaluate_config: ConfigRecord | None
) -> tuple[ConfigRecord, ConfigRecord]:
    """Return what is sent with queries and with questions."""
    given = {"train_config": train_config, "evaluate_config": evaluate_config}
    for name, config in given.items():
        if config is not None and not isinstance(config, ConfigRecord):
            fix = "pass for example ConfigRecord({'lr': 0.1})"
            raise ConfigError(name, config, "a ConfigRecord or None", fix)
    return train_config or ConfigRecord(), evaluate_config or ConfigRecord()


def _run_id(grid: Grid) -> int:
    """Return Flower's id of the run; 0 where a grid knows of none."""
    try:
        return int(grid.run.run_id)
    except Exception:
        return 0


def _pace(most: float | None) -> str:
    return "as many as it sends" if most is None else f"{most:g} times the median node's"


def check_parts(aggregator: object, optimizer: object) -> None:
    """Make sure that a rule can be called, that an optimizer steps, and that both are made."""
    if not callable(aggregator) or isinstance(aggregator, type):
        fix = "pass for example CTMA(GeometricMedian(), byz_fraction=0.4)"
        raise ConfigError("aggregator", aggregator, "a rule called as rule(rows, weights)", fix)
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, type):
        fix = "pass for example AnyTimeSGD(lr=0.01, gamma=0.1)"
        raise ConfigError("optimizer", optimizer, "an object with init and step", fix)


def check_not_fedavg(fraction_train: object, weighted_by_key: object) -> None:
    """Refuse two of FedAvg's arguments that mean nothing here, and say what does."""
    if fraction_train != 1.0:
        legal = "1.0: every connected node is asked as soon as it has replied"
        fix = "leave it out; max_pace bounds how often a node is asked"
        raise ConfigError("fraction_train", fraction_train, legal, fix)
    if weighted_by_key is not None:
        legal = "None: nothing that a client reports becomes a weight"
        fix = "leave it out; weights='counts' or 'uniform' say what a node weighs"
        raise ConfigError("weighted_by_key", weighted_by_key, legal, fix)


def default_optimizer(reading: Reading) -> Optimizer:
    """Return the server's step where none is given, which is spread over the nodes' replies.

    Together with a delay compensation of one half; docs/migration.md has the reasons.
    """
    if reading.payload != "model":
        fix = "pass for example AnyTimeSGD(lr=0.01, gamma=0.1)"
        raise ConfigError("optimizer", None, "an optimizer where replies are no models", fix)
    return SGD(lr=2.0, per_node=True)


def check_least(available: int | None, train: int | None, quorum: int | None) -> int:
    """Return how many nodes must be connected before the first query; FedAvg takes 2."""
    given = [
        check_count("min_available_nodes", available),
        check_count("min_train_nodes", train),
    ]
    return max((count for count in given if count is not None), default=quorum or 2)


def check_stop(stop: object) -> EarlyStop | None:
    """Return when to stop early, or None for not at all."""
    if stop is not None and not isinstance(stop, EarlyStop):
        fix = "pass for example EarlyStop('accuracy', at_least=0.95)"
        raise ConfigError("early_stop", stop, "an EarlyStop or None", fix)
    return stop


def check_resume(checkpoints: object, resume: object) -> tuple[Checkpoints | None, bool]:
    """Return where a run is written down and whether it goes on from there."""
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        fix = "pass for example Checkpoints('/data/run1')"
        raise ConfigError("checkpoints", checkpoints, "a Checkpoints or None", fix)
    if not isinstance(resume, bool):
        raise ConfigError("resume", resume, "True or False", "pass True to go on with a run")
    if resume and checkpoints is None:
        fix = "pass for example checkpoints=Checkpoints('/data/run1')"
        raise ConfigError("resume", resume, "False without checkpoints", fix)
    return checkpoints, resume
