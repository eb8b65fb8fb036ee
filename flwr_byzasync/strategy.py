"""AsyncRobust: the Flower strategy whose loop is driven by arrivals. No mathematics here."""

from collections.abc import Iterable, Sequence

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_byzasync._checks import check_count
from flwr_byzasync._moved_arguments import ASYNC_ROBUST, moved
from flwr_byzasync.aggregators import Aggregator
from flwr_byzasync.checkpoints.files import Checkpoints
from flwr_byzasync.core.contribution import Payload
from flwr_byzasync.core.policy import Liveness, Quorum
from flwr_byzasync.core.statistics import Statistics, statistics
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.optimizers import Optimizer
from flwr_byzasync.server.metrics_aggregation import MetricsFn
from flwr_byzasync.server.round_hooks import RoundHooks
from flwr_byzasync.server.run_plan import (
    Callback,
    EvaluateFn,
    RunPlan,
    ShouldStopFn,
    checked_callbacks,
)
from flwr_byzasync.server.settings import StrategySettings, check_not_fedavg
from flwr_byzasync.server.summary import log_result, log_start, log_summary
from flwr_byzasync.server.training import run_training
from flwr_byzasync.weights import WeightPolicy


class AsyncRobust(Strategy):
    """Asynchronous Byzantine-robust training: every accepted reply makes a step.

    ``AsyncRobust()`` takes the place of ``FedAvg()`` for ClientApps that return weights; with an
    `optimizer` it is the strategy of `client_app`. Each accepted reply replaces its node's row
    and is counted, all rows are aggregated by the robust rule, the optimizer takes one step, and
    the node gets its next query at once. Nobody waits for anybody.

    Parameters
    ----------
    aggregator : Aggregator, optional
        The robust rule, called as ``rule(rows, weights)``. None takes
        ``CTMA(CoordinateWiseMedian(), 0.45)``, for up to four Byzantine nodes in ten.
    optimizer : Optimizer, optional
        The server's step, for example ``AnyTimeSGD(lr=0.01, gamma=0.1)``. None takes
        ``SGD(lr=2.0, per_node=True)``, for models: each reply applies 2/m of the aggregated
        update, where m is the number of nodes.
    payload : Payload, optional
        What replies contain: `Models`, `Momenta`, `Gradients` or `CorrectedGradients`. None
        takes ``Momenta()`` where an `optimizer` is passed, else ``Models()``.
    weights : {"counts", "uniform", "staleness"} or WeightPolicy, optional
        What a row weighs: its node's accepted replies s_i, 1, ``s_i (1 + τ_i)^−½`` with τ_i its
        age in steps, or a policy, for example ``Capped(Counts(), 0.2)``. None takes "uniform" for
        `Models` and "counts" for vectors, whose noise falls with the count.
    quorum : Quorum
        Nodes that must have replied before the first step, and what if fewer respond later.
    liveness : Liveness
        Timeouts, quarantine and rate limit of a node.
    updates_per_round : int, optional
        Accepted replies in a round, >= 1; evaluation and logging happen at its end. None takes
        the number of nodes connected at the start. The first round lasts until the first step.
    buffers : collection of str, optional
        Names of arrays that are not parameters, for example ``buffer_names(model)``, beside
        PyTorch batch-norm statistics, which are detected by their `num_batches_tracked` counter.
        Floating buffers take the weighted median; integer arrays are never averaged.
    device : str or torch.device, default "cpu"
        Where rows are kept and aggregated.
    checkpoints : Checkpoints, optional
        Where `start` writes checkpoints, how often, and whether it resumes. It also writes one
        when the run ends, and on SIGINT and SIGTERM where they can be caught.
    callbacks : sequence of EarlyStop or callable
        What happens at the end of each round: a callable gets ``(round, arrays, metrics of
        evaluate_fn)``, an `EarlyStop` may end the run. Like `checkpoints`, for `start` alone.
    fraction_evaluate : float, optional
        Share of the connected nodes in [0, 1] that evaluate at the end of a round, while all go
        on training. None takes 1.0 for `Models`, as FedAvg does, and 0.0 otherwise. A node whose
        first evaluation reply has no metrics is not asked again.
    min_evaluate_nodes : int, default 2
        Nodes that evaluate at least, >= 0. One Byzantine node of two moves the median anywhere.
    min_available_nodes, min_train_nodes : int, optional
        Nodes that must be connected before the first query, >= 1; the larger counts. They are
        the initial nodes. None takes `Quorum.nodes` or, as FedAvg does, 2: in a deployment pass
        how many you expect, or the first to connect, honest or not, start alone.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn : callable, optional
        ``(records, "num-examples") -> MetricRecord``, as in FedAvg. None takes the median, which
        no minority can distort; `flwr_byzasync.mean_metrics` is a mean.
    arrayrecord_key, configrecord_key : str
        Names of the records in messages, as in Flower's own strategies.
    fraction_train, weighted_by_key
        FedAvg's, refused: every node is queried (`Liveness.max_rate`), and nothing that a client
        reports becomes a weight (`weights`).

    Raises
    ------
    ConfigError
        If a setting is out of range.

    Notes
    -----
    Dahan and Levy 2024, arXiv 2501.09621, algorithm 2. A reply that cannot be used is counted
    with a `Reason` and leaves the model bit-identical. `VirtualGrid` brings its own clock.

    Examples
    --------
    >>> from flwr_byzasync.aggregators import CTMA, GeometricMedian
    >>> from flwr_byzasync.optimizers import AnyTimeSGD
    >>> drop_in = AsyncRobust(min_available_nodes=10)
    >>> strategy = AsyncRobust(
    ...     CTMA(GeometricMedian(), byz_fraction=0.4),
    ...     AnyTimeSGD(lr=0.01, gamma=0.1),
    ...     quorum=Quorum(nodes=9),
    ... )
    """

    @moved(ASYNC_ROBUST)
    def __init__(
        self,
        aggregator: Aggregator | None = None,
        optimizer: Optimizer | None = None,
        *,
        payload: Payload | None = None,
        weights: str | WeightPolicy | None = None,
        quorum: Quorum = Quorum(),
        liveness: Liveness = Liveness(),
        updates_per_round: int | None = None,
        buffers: Iterable[str] | None = None,
        device: str | torch.device = "cpu",
        checkpoints: Checkpoints | None = None,
        callbacks: Sequence[Callback] = (),
        fraction_train: float = 1.0,
        fraction_evaluate: float | None = None,
        min_train_nodes: int | None = None,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int | None = None,
        weighted_by_key: None = None,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsFn | None = None,
        evaluate_metrics_aggr_fn: MetricsFn | None = None,
    ) -> None:
        super().__init__()
        check_not_fedavg(fraction_train, weighted_by_key)
        settings = StrategySettings.checked(
            aggregator,
            optimizer,
            payload,
            weights,
            quorum,
            liveness,
            device,
            buffers,
            (arrayrecord_key, configrecord_key),
            (fraction_evaluate, min_evaluate_nodes, evaluate_metrics_aggr_fn),
            train_metrics_aggr_fn,
        )
        self.settings, self.aggregator = settings, settings.aggregator
        self._hooks = RoundHooks(settings)
        counts = [
            check_count("min_available_nodes", min_available_nodes),
            check_count("min_train_nodes", min_train_nodes),
        ]
        given = [count for count in counts if count is not None]
        self.min_available_nodes = max(given, default=quorum.nodes or 2)
        self.updates_per_round = check_count("updates_per_round", updates_per_round)
        if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
            fix = "pass for example Checkpoints('/data/run1')"
            raise ConfigError("checkpoints", checkpoints, "a Checkpoints or None", fix)
        self.checkpoints, self.callbacks = checkpoints, checked_callbacks(callbacks)

    def summary(self) -> None:
        """Log the settings, as a tree."""
        size, available = self.updates_per_round, self.min_available_nodes
        log_summary(self.settings, size, available, self.checkpoints)

    def statistics(self) -> Statistics:
        """Return a snapshot of the run, empty before one: see `Statistics`."""
        endpoint = self._hooks.endpoint
        if endpoint is None:
            return Statistics()
        return statistics(endpoint.state, endpoint.stop_reason)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        should_stop: ShouldStopFn | None = None,
    ) -> Result:
        """Train for `num_rounds` rounds of accepted replies.

        Parameters
        ----------
        grid : Grid
            As a ServerApp receives it.
        initial_arrays : ArrayRecord
            The initial model, for example ``ArrayRecord(model.state_dict())``.
        num_rounds : int, default 3
            Rounds, >= 1.
        timeout : float, default 3600
            Longest time in seconds without an accepted reply, and before the first step. Then
            the run ends with an error in the log, fewer rounds in `Result`, and the reason in
            ``statistics().stop_reason``. So it does, at once, when every node is quarantined
            before any has replied, when a step needs more nodes than can still come, or when it
            leaves the range of the model's numbers.
        train_config, evaluate_config : ConfigRecord, optional
            Sent with every query, and with every evaluation request.
        evaluate_fn : callable, optional
            ``(round, arrays) -> MetricRecord or None``, called at round 0 and after each round.
        should_stop : callable, optional
            ``(round, result) -> bool``, called after each round: True ends the run.

        Returns
        -------
        Result
            Flower's own: final arrays, and metrics by round.

        Raises
        ------
        ConfigError
            If an argument is out of range, or the run in the folder of checkpoints cannot be
            resumed; before any message is sent.
        """
        plan = RunPlan(
            num_rounds,
            timeout,
            self.settings.policy.liveness,
            self.min_available_nodes,
            self.updates_per_round,
            self._end_round,
            self.settings.evaluation,
            evaluate_fn,
            self.callbacks,
            should_stop,
            ConfigRecord() if train_config is None else train_config,
            ConfigRecord() if evaluate_config is None else evaluate_config,
        )
        endpoint = self._hooks.begin(initial_arrays, grid)
        began = endpoint.clock()
        log_start(type(self).__name__, plan.num_rounds, endpoint.state.layout)
        self.summary()
        with self._hooks.driven_by_arrivals():
            result = run_training(
                plan, endpoint, grid, initial_arrays, self.checkpoints, self.aggregator
            )
        log_result(result, endpoint.clock() - began)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one query for every connected node, in Flower's synchronous loop.

        Raises
        ------
        ConfigError
            If the arrays do not have the model's names, shapes and dtypes, or there are
            `checkpoints` or `callbacks`: only `start` knows of them.
        """
        for name, setting in (("checkpoints", self.checkpoints), ("callbacks", self.callbacks)):
            if setting:
                legal = "left out under Flower's synchronous loop, which does not know it"
                raise ConfigError(name, setting, legal, "call start, or leave it out")
        return self._hooks.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Apply each reply as one step, and return the model and what nodes reported last.

        `start` calls it too, at the end of each round and without replies, so that a subclass
        that overrides it works in both loops.
        """
        del server_round
        return self._hooks.aggregate_train(replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return evaluation requests to some of the connected nodes."""
        return self._hooks.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the metrics of the replies as one record: the median by default."""
        del server_round
        return self._hooks.aggregate_evaluate(replies)

    def _end_round(self, server_round: int) -> tuple[ArrayRecord, MetricRecord | None]:
        """Let a subclass see the end of a round that arrivals made, and change the model."""
        arrays, metrics = self.aggregate_train(server_round, ())
        return self._hooks.after_aggregation(arrays), metrics
