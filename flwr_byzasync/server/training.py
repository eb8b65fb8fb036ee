"""The rounds of one run: started or resumed, evaluated, logged and checkpointed."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from logging import getLogger
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from flwr_byzasync.checkpoints.files import Checkpoints
from flwr_byzasync.checkpoints.snapshot import run_fingerprint
from flwr_byzasync.core.events import on_clock_paused, on_end
from flwr_byzasync.core.membership import without_absent
from flwr_byzasync.core.statistics import round_start
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.server.arrival_loop import ArrivalLoop
from flwr_byzasync.server.checkpointing import CheckpointManager
from flwr_byzasync.server.early_stopping import EarlyStop
from flwr_byzasync.server.endpoint import Endpoint
from flwr_byzasync.server.evaluation import Evaluations
from flwr_byzasync.server.poller import poller_of
from flwr_byzasync.server.round_log import format_round
from flwr_byzasync.server.run_plan import RunPlan
from flwr_byzasync.server.signals import Signals

logger = getLogger("flwr")

RECONNECT_SECONDS = 120.0
"""Seconds a resumed run waits for its remaining nodes after the first ones have reconnected: a
SuperLink refuses a killed SuperNode for a minute."""


class Training:
    """Runs the rounds of one plan.

    Parameters
    ----------
    plan : RunPlan
        What to do.
    endpoint : Endpoint
        At the initial model, or where the run was resumed.
    grid : Grid
        The network.
    result : Result
        Filled round by round.
    manager : CheckpointManager
        Where the run is, and its checkpoints.
    """

    def __init__(
        self,
        plan: RunPlan,
        endpoint: Endpoint,
        grid: Grid,
        result: Result,
        manager: CheckpointManager,
    ) -> None:
        self._plan, self._endpoint, self._result = plan, endpoint, result
        self._manager, self._signals = manager, Signals()
        self._warned: set[EarlyStop] = set()
        self._loop = ArrivalLoop(
            endpoint,
            grid,
            dict(plan.train_config),
            plan.timeout,
            plan.poll_interval,
            self.on_idle,
        )
        self._evaluations = Evaluations(
            plan.evaluation,
            grid,
            plan.evaluate_config,
            endpoint.message_format,
            endpoint.clock,
            plan.reply_timeout,
            self._on_evaluated,
            poller_of(grid),
            plan.poll_interval,
            manager.position.evaluations,
        )

    def run(self) -> None:
        """Run all rounds that are left."""
        plan, manager, fresh = self._plan, self._manager, self._manager.position.size == 0
        if fresh:
            self._evaluate(0)
        over = manager.position.server_round > plan.num_rounds or self._should_stop()
        if not over:
            if not self._wait_for_nodes():
                return
            size = plan.updates_per_round or manager.position.size or len(self._loop.connected)
            manager.update_position(size=size)
            if fresh:
                self._begin_round(1)
            manager.reset_timer()
        # Without checkpoints signals are not handled at all.
        with self._signals if manager.checkpoints else nullcontext(), self._checkpoint_on_error():
            while not over:
                over = not self._run_round() or manager.position.server_round > plan.num_rounds
            if self._evaluations.in_progress:
                self._wait_for_evaluations()
                self._write()

    def on_idle(self) -> None:
        """Write a checkpoint if one is due or a signal is waiting, which is then handed on."""
        self._evaluations.poll(self._loop.connected)
        if self._manager.checkpoint_due or self._signals.pending:
            self._write()
        self._signals.hand_on()

    def _run_round(self) -> bool:
        """Run one round; return False if it was the last."""
        endpoint, position = self._endpoint, self._manager.position
        current = position.server_round
        complete = self._loop.run_round(current, position.round_start.accepted + position.size)
        stops = complete and self._finish_round(current)
        if not complete:
            self._result.arrays = endpoint.arrays()
            endpoint.state = on_end(endpoint.state, endpoint.clock())
        last = not complete or stops or current == self._plan.num_rounds
        if last or self._manager.due_after(current):
            self._write()
        self.on_idle()
        return complete and not stops

    def _finish_round(self, done: int) -> bool:
        """Evaluate and log a complete round; return whether the run ends after it."""
        endpoint, manager, plan = self._endpoint, self._manager, self._plan
        with self._clock_paused():
            self._result.arrays, metrics = plan.end_round(done)
        if metrics:
            manager.record_metrics("train_metrics_clientapp", done, metrics)
        central = self._evaluate(done)
        self._evaluations.start(done, self._result.arrays, self._loop.connected)
        start, now = manager.position.round_start, endpoint.clock()
        line = format_round(done, plan.num_rounds, start, endpoint.state, central, now)
        logger.info("%s", line)
        for callback in plan.round_end_fns:
            with self._clock_paused():
                callback(done, self._result.arrays, central)
        self._begin_round(done + 1)
        return self._should_stop()

    def _begin_round(self, server_round: int) -> None:
        start = round_start(self._endpoint.state, self._endpoint.clock())
        self._manager.update_position(server_round=server_round, round_start=start)

    def _should_stop(self) -> bool:
        """Whether the last finished round ends the run; a resumed run asks again."""
        plan, position = self._plan, self._manager.position
        done = position.server_round - 1
        if done == 0:
            return False
        elapsed = self._manager.elapsed_at(position.round_start.at)
        metrics = self._result.evaluate_metrics_serverapp.get(done)
        reasons = [stop.reached(metrics, elapsed) for stop in plan.early_stops]
        why = next((reason for reason in reasons if reason), None)
        if why is None and plan.should_stop is not None and plan.should_stop(done, self._result):
            why = "should_stop returned True"
        if why is not None:
            logger.info("The run ends after round %d: %s.", done, why)
        return why is not None

    def _evaluate(self, server_round: int) -> MetricRecord | None:
        if self._plan.evaluate_fn is None:
            return None
        with self._clock_paused():
            metrics = _checked(self._plan.evaluate_fn(server_round, self._result.arrays))
        if metrics is not None:
            self._manager.record_metrics("evaluate_metrics_serverapp", server_round, metrics)
            self._warn_of_missing(metrics)
        return metrics

    def _warn_of_missing(self, metrics: MetricRecord) -> None:
        """Warn once per `EarlyStop` whose metric is missing: a misspelt name would stop nothing."""
        for stop in self._plan.early_stops:
            warning = None if stop in self._warned else stop.missing(metrics)
            if warning:
                logger.warning("EarlyStop: %s.", warning)
                self._warned.add(stop)

    def _on_evaluated(self, server_round: int, metrics: MetricRecord) -> None:
        """Record what nodes reported about a round's model."""
        reported = self._result.evaluate_metrics_clientapp
        self._manager.record_metrics("evaluate_metrics_clientapp", server_round, metrics)
        # Flower shows them in this order, and a slow node's round may end after the next one.
        for later in sorted(key for key in reported if key > server_round):
            reported[later] = reported.pop(later)

    def _wait_for_evaluations(self) -> None:
        while self._evaluations.in_progress:
            self._loop.poll_wait()
            self._loop.refresh_nodes()
            self.on_idle()

    def _wait_for_nodes(self) -> bool:
        """Wait for nodes; where a run resumes among others, forget those that are absent.

        If every node that was connected is back, the federation is the one that the run knew,
        and what it knows of nodes that were away still holds.
        """
        loop, known = self._loop, set(self._manager.position.connected)
        if known and known <= set(loop.refresh_nodes()):
            return True
        if not loop.wait_for_nodes(self._plan.min_available_nodes):
            return False
        if known & set(loop.connected):
            with self._clock_paused():
                loop.wait_for_return(known, RECONNECT_SECONDS)
        endpoint, connected = self._endpoint, loop.connected
        if endpoint.state.nodes and not (known and known <= set(connected)):
            absent = len(endpoint.state.nodes.keys() - set(connected))
            endpoint.state = without_absent(endpoint.state, connected)
            logger.info("%d nodes have not returned: their rows are dropped.", absent)
        return True

    @contextmanager
    def _clock_paused(self) -> Iterator[None]:
        """Do something that may take long: no reply that arrives meanwhile is late."""
        endpoint, began = self._endpoint, self._endpoint.clock()
        yield
        endpoint.state = on_clock_paused(endpoint.state, endpoint.clock() - began)

    @contextmanager
    def _checkpoint_on_error(self) -> Iterator[None]:
        """Write what an exception would lose: one of `evaluate_fn`, or of a run that is stopped.

        Not for a second signal: it is not kept waiting.
        """
        try:
            yield
        except BaseException:
            if self._manager.has_unsaved and not self._signals.pressing:
                self._write()
            raise

    def _write(self) -> None:
        manager = self._manager
        connected = self._loop.connected or manager.position.connected
        manager.update_position(connected=connected, evaluations=self._evaluations.pending)
        manager.write()


def _checked(metrics: Any) -> MetricRecord | None:
    """Return what `evaluate_fn` returned as a MetricRecord: only that can be stored."""
    if metrics is None or isinstance(metrics, MetricRecord):
        return metrics
    try:
        return MetricRecord(dict(metrics))
    except (TypeError, ValueError) as error:
        legal = f"a function that returns a MetricRecord or None ({error})"
        fix = "return for example MetricRecord({'accuracy': 0.9})"
        raise ConfigError("evaluate_fn", metrics, legal, fix) from error


def run_training(
    plan: RunPlan,
    endpoint: Endpoint,
    grid: Grid,
    initial_arrays: ArrayRecord,
    checkpoints: Checkpoints | None,
    aggregator: object,
) -> Result:
    """Run a plan from its start, or from the latest checkpoint, and return its result."""
    result = Result(arrays=initial_arrays)
    fingerprint = run_fingerprint(endpoint.state, aggregator)
    manager = CheckpointManager(endpoint, result, checkpoints, fingerprint, _run_id(grid))
    if checkpoints is not None:
        checkpoints.prepare()
    with checkpoints.claim() if checkpoints else nullcontext():
        manager.recover()
        Training(plan, endpoint, grid, result, manager).run()
    return result


def _run_id(grid: Grid) -> int:
    """Return Flower's id of the run; 0 where a grid knows of none."""
    try:
        return int(grid.run.run_id)
    except Exception:
        return 0
