"""The rounds of one run: begun or gone on with, evaluated, logged and written down."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from logging import getLogger
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result

from flwr_byzasync.core.events import on_end, on_standstill, without_absent
from flwr_byzasync.core.state import ServerState
from flwr_byzasync.core.statistics import RoundStart, round_start
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.server.arrival_loop import ArrivalLoop
from flwr_byzasync.server.checkpointing import CheckpointManager
from flwr_byzasync.server.early_stopping import EarlyStop
from flwr_byzasync.server.endpoint import Endpoint
from flwr_byzasync.server.evaluation import Evaluations
from flwr_byzasync.server.signals import Signals

logger = getLogger("flwr")

RETURN_SECONDS = 120.0
"""How long a run that goes on waits for all of its nodes once some are back: a SuperNode that was
killed is refused by its SuperLink for a minute."""

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
RoundEndFn = Callable[[int, ArrayRecord, MetricRecord | None], None]


@dataclass(frozen=True)
class RoundEnd:
    """What happens at the end of a round.

    Parameters
    ----------
    aggregate : callable
        ``round -> (model, what nodes reported)``.
    evaluate_fn : callable or None
        ``(round, arrays) -> MetricRecord or None``.
    callback : callable or None
        ``(round, arrays, metrics of evaluate_fn) -> None``.
    early_stop : EarlyStop or None
        Whether it was the last.
    """

    aggregate: Callable[[int], tuple[ArrayRecord, MetricRecord | None]]
    evaluate_fn: EvaluateFn | None = None
    callback: RoundEndFn | None = None
    early_stop: EarlyStop | None = None


class Training:
    """Plays the rounds of one run.

    Parameters
    ----------
    session : Session
        At the initial model.
    result : Result
        Filled round by round.
    num_rounds : int
        Rounds of the whole run.
    end : RoundEnd
        What happens at the end of a round.
    logbook : Logbook
        Where the run is, and where that is written down.
    """

    def __init__(
        self,
        session: Endpoint,
        result: Result,
        num_rounds: int,
        end: RoundEnd,
        logbook: CheckpointManager,
    ) -> None:
        self._session, self._result, self._num_rounds = session, result, num_rounds
        self._end, self._logbook = end, logbook
        self._signals, self._warned = Signals(), False
        self._loop: ArrivalLoop | None = None
        self._evaluations: Evaluations | None = None

    def run(
        self, loop: ArrivalLoop, evaluations: Evaluations, wanted: int, size: int | None
    ) -> None:
        """Play what is left of the run, with `size` accepted replies in a round.

        Parameters
        ----------
        loop : ArrivalLoop
            Over the session; it calls `between`.
        evaluations : Evaluations
            By nodes; they tell `on_evaluated`.
        wanted : int
            Nodes to wait for before anything is sent.
        size : int or None
            None: as many as nodes are connected at the start.
        """
        self._loop, self._evaluations, log = loop, evaluations, self._logbook
        evaluations.pending = log.position.evaluations
        fresh = log.position.size == 0
        if fresh:
            self._evaluate(0)
        over = log.position.server_round > self._num_rounds or self._should_stop()
        if not over:
            if not self._wait_for_nodes(wanted):
                return
            log.update_position(size=size or log.position.size or len(loop.connected))
            if fresh:
                log.update_position(
                    round_start=round_start(self._session.state, self._session.clock())
                )
            log.reset_timer()
        # Without checkpoints a signal is nobody's business here.
        with self._signals if log.checkpoints else nullcontext(), self._checkpoint_on_error():
            while not over:
                over = not self._play_round(loop) or log.position.server_round > self._num_rounds
            if evaluations.in_progress:
                self._wait_for_evaluations(loop, evaluations)
                self._write()

    def on_evaluated(self, server_round: int, metrics: MetricRecord) -> None:
        """Take note of what nodes found that a round's model is worth."""
        told = self._result.evaluate_metrics_clientapp
        self._logbook.record_metrics("evaluate_metrics_clientapp", server_round, metrics)
        # Flower shows them in this order, and a slow node's round may end after the next one.
        for later in sorted(key for key in told if key > server_round):
            told[later] = told.pop(later)

    def on_idle(self) -> None:
        """Write the run down if it is time to, or a signal is waiting, which then goes on."""
        if self._evaluations is not None and self._loop is not None:
            self._evaluations.poll(self._loop.connected)
        if self._logbook.checkpoint_due or self._signals.pending:
            self._write()
        self._signals.hand_on()

    def _play_round(self, loop: ArrivalLoop) -> bool:
        """Play one round; False if it was the last one that there is to play."""
        session, position = self._session, self._logbook.position
        done = position.server_round
        complete = loop.run_round(done, position.round_start.accepted + position.size)
        enough = complete and self._finish_round(loop, done)
        if not complete:
            self._result.arrays = session.arrays()
            session.state = on_end(session.state, session.clock())
        if not complete or enough or done == self._num_rounds or self._logbook.due_after(done):
            self._write()
        self.on_idle()
        return complete and not enough

    def _finish_round(self, loop: ArrivalLoop, done: int) -> bool:
        """Evaluate, tell and log a complete round; return whether it may be the last."""
        session, position, end = self._session, self._logbook.position, self._end
        with self._clock_paused():
            self._result.arrays, metrics = end.aggregate(done)
        if metrics:
            self._logbook.record_metrics("train_metrics_clientapp", done, metrics)
        central = self._evaluate(done)
        if self._evaluations is not None:
            self._evaluations.start(done, self._result.arrays, loop.connected)
        now = session.clock()
        line = format_round(
            done, self._num_rounds, position.round_start, session.state, central, now
        )
        logger.info("%s", line)
        if end.callback is not None:
            with self._clock_paused():
                end.callback(done, self._result.arrays, central)
        self._logbook.update_position(
            server_round=done + 1, round_start=round_start(session.state, session.clock())
        )
        return self._should_stop()

    def _should_stop(self) -> bool:
        """Whether the last finished round was the last one; a run that goes on asks it again."""
        stop, done = self._end.early_stop, self._logbook.position.server_round - 1
        if stop is None or done == 0:
            return False
        elapsed = self._logbook.elapsed_at(self._logbook.position.round_start.at)
        enough = stop.reached(self._result.evaluate_metrics_serverapp.get(done), elapsed)
        if enough:
            logger.info("The run ends after round %d: %s.", done, enough)
        return enough is not None

    def _wait_for_evaluations(self, loop: ArrivalLoop, evaluations: Evaluations) -> None:
        while evaluations.in_progress:
            loop.poll_wait()
            loop.refresh_nodes()
            self.on_idle()

    def _wait_for_nodes(self, wanted: int) -> bool:
        """Wait for nodes; where a run goes on among others, forget those that are not there.

        If all that were connected are there again, it is the world that the run knew, and what
        it knows of nodes that were away stays true as well.
        """
        loop, before = self._loop, set(self._logbook.position.connected)
        assert loop is not None
        if before and before <= set(loop.refresh_nodes()):
            return True
        if not loop.wait_for_nodes(wanted):
            return False
        if before & set(loop.connected):
            # The nodes that the run knew come back, one by one as nodes do.
            with self._clock_paused():
                loop.wait_for_return(before, RETURN_SECONDS)
        session, here = self._session, loop.connected
        if session.state.nodes and not (before and before <= set(here)):
            gone = len(session.state.nodes.keys() - set(here))
            session.state = without_absent(session.state, here)
            logger.info("%d nodes are not there any more: their rows are dropped.", gone)
        return True

    def _evaluate(self, server_round: int) -> MetricRecord | None:
        if self._end.evaluate_fn is None:
            return None
        with self._clock_paused():
            metrics = _checked(self._end.evaluate_fn(server_round, self._result.arrays))
        if metrics is not None:
            self._logbook.record_metrics("evaluate_metrics_serverapp", server_round, metrics)
            self._tell_if_never_stopped_by(metrics)
        return metrics

    def _tell_if_never_stopped_by(self, metrics: MetricRecord) -> None:
        """Warn once of metrics that `early_stop` cannot stop by: a wrong name stops nothing."""
        stop = self._end.early_stop
        matter = None if stop is None or self._warned else stop.unanswered(metrics)
        if matter:
            logger.warning("early_stop: %s.", matter)
            self._warned = True

    @contextmanager
    def _clock_paused(self) -> Iterator[None]:
        """Do something for as long as it takes: replies that come meanwhile are in time."""
        session, began = self._session, self._session.clock()
        yield
        session.state = on_standstill(session.state, session.clock() - began)

    @contextmanager
    def _checkpoint_on_error(self) -> Iterator[None]:
        """Write down what an exception would lose: of `evaluate_fn`, or of a run that is stopped.

        Not for a second signal: it is not kept waiting.
        """
        try:
            yield
        except BaseException:
            if self._logbook.has_unsaved and not self._signals.pressing:
                self._write()
            raise

    def _write(self) -> None:
        connected = self._loop.connected if self._loop is not None else ()
        if self._evaluations is not None:
            self._logbook.update_position(evaluations=self._evaluations.pending)
        self._logbook.update_position(connected=connected or self._logbook.position.connected)
        self._logbook.write()


def _checked(metrics: Any) -> MetricRecord | None:
    """Return what `evaluate_fn` returned as a MetricRecord: only that can be written down."""
    if metrics is None or isinstance(metrics, MetricRecord):
        return metrics
    try:
        return MetricRecord(dict(metrics))
    except (TypeError, ValueError) as error:
        legal = f"a function that returns a MetricRecord or None ({error})"
        fix = "return for example MetricRecord({'accuracy': 0.9})"
        raise ConfigError("evaluate_fn", metrics, legal, fix) from error


def format_round(
    server_round: int,
    num_rounds: int,
    since: RoundStart,
    state: ServerState,
    metrics: Mapping[str, object] | None,
    now: float,
) -> str:
    """Return a round's replies and their rate, metrics, staleness, rejected and time left."""
    fresh, seconds = state.accepted - since.accepted, now - since.at
    staleness = (state.staleness - since.staleness) / max(fresh, 1)
    rejected = sum(state.reasons.values())
    # By the pace of this round alone: the first one waited for the clients to start.
    try:
        left = str(timedelta(seconds=round(seconds * (num_rounds - server_round))))
    except OverflowError:  # a run that is meant to go on until it is stopped
        left = "years"
    parts = [f"{state.accepted} replies ({fresh / max(seconds, 1e-9):.1f}/s)"]
    if metrics:
        parts.append(", ".join(f"{k} {_short(v)}" for k, v in metrics.items()))
    parts += [f"staleness {staleness:.1f}", f"rejected {rejected}", f"{left} left"]
    return f"[ROUND {server_round}/{num_rounds}] " + " | ".join(parts)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
