"""The rounds of one run: begun or gone on with, evaluated, logged and written down."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result

from flwr_byzasync.checkpoint import Checkpoints
from flwr_byzasync.codec import MisfitError
from flwr_byzasync.errors import ConfigError, Reason
from flwr_byzasync.evaluation import Evaluations
from flwr_byzasync.loop import ArrivalLoop
from flwr_byzasync.progress import mark, round_line
from flwr_byzasync.session import Session
from flwr_byzasync.signals import Signals
from flwr_byzasync.snapshot import (
    Position,
    check_identity,
    dump,
    load,
    moved,
    without_absent,
)
from flwr_byzasync.state import Rejected
from flwr_byzasync.stopping import EarlyStop

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
    checkpoints : Checkpoints or None
        Where the run is written down.
    identity : mapping of str to str
        What must be the same when the run goes on.
    run_id : int
        Flower's id of this `flwr run`.
    """

    def __init__(
        self,
        session: Session,
        result: Result,
        num_rounds: int,
        end: RoundEnd,
        checkpoints: Checkpoints | None,
        identity: Mapping[str, str],
        run_id: int,
    ) -> None:
        self._session, self._result, self._num_rounds = session, result, num_rounds
        self._end, self._checkpoints = end, checkpoints
        self._identity, self._run_id = identity, run_id
        now = session.clock()
        self._position = Position(now, 0.0, 1, 0, mark(session.state, now), run_id=run_id)
        self._began = self._written = now
        self._signals, self._warned = Signals(), False
        self._loop: ArrivalLoop | None = None
        self._evaluations: Evaluations | None = None

    def recover(self, resume: bool) -> None:
        """Prepare the folder of checkpoints, and go on from the newest whole one if asked to.

        Raises
        ------
        ConfigError
            If the folder cannot be used, the run in it is of another model, rule or optimizer,
            none of its checkpoints is whole, or there are some and `resume` is False.
        """
        if self._checkpoints is None:
            return
        found = self._checkpoints.paths()
        if found and not resume:
            legal = f"True where the folder holds a run: {found[0]} is there"
            fix = "pass resume=True to go on with it, or another folder to begin anew"
            raise ConfigError("resume", resume, legal, fix)
        for path, document, tensors in self._checkpoints.read():
            check_identity(document.get("identity", {}), self._identity, path.name)
            try:
                self._take_over(document, tensors)
            except MisfitError as error:
                logger.warning("Checkpoint %s is not used: %s.", path.name, error)
                continue
            position = self._position
            logger.info(
                "Going on from %s: round %d, %d replies, after %.0f seconds.",
                path.name,
                position.server_round,
                self._session.state.accepted,
                position.elapsed,
            )
            return
        if found:
            legal = "a folder with a whole checkpoint: the log says what is wrong with each"
            fix = "bring one back from a copy, or begin a new run in another folder"
            raise ConfigError("folder", str(self._checkpoints.folder), legal, fix)
        self._state_can_be_written()

    def play(
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
        self._loop, self._evaluations = loop, evaluations
        fresh = self._position.size == 0
        if fresh:
            self._evaluate(0)
        if self._position.server_round > self._num_rounds or self._far_enough():
            return
        if not self._gather(wanted):
            return
        now = self._session.clock()
        size = size or self._position.size or len(loop.connected)
        self._note(size=size, **({"mark": mark(self._session.state, now)} if fresh else {}))
        self._written = now
        # Without checkpoints a signal is nobody's business here.
        with self._signals if self._checkpoints else nullcontext():
            while self._position.server_round <= self._num_rounds and self._play_round(loop):
                pass
            if evaluations.under_way:
                self._wait_for_evaluations(loop, evaluations)
                self._write()

    def on_evaluated(self, server_round: int, metrics: MetricRecord) -> None:
        """Take note of what nodes found that a round's model is worth."""
        told = self._result.evaluate_metrics_clientapp
        told[server_round] = metrics
        # Flower shows them in this order, and a slow node's round may end after the next one.
        for later in sorted(key for key in told if key > server_round):
            told[later] = told.pop(later)

    def between(self) -> None:
        """Write the run down if it is time to, or a signal is waiting, which then goes on."""
        if self._evaluations is not None and self._loop is not None:
            self._evaluations.take_in(self._loop.connected)
        every = None if self._checkpoints is None else self._checkpoints.every_seconds
        late = every is not None and self._session.clock() - self._written >= every
        if late or self._signals.pending:
            self._write()
        self._signals.hand_on()

    def _play_round(self, loop: ArrivalLoop) -> bool:
        """Play one round; False if it was the last one that there is to play."""
        session, position = self._session, self._position
        done = position.server_round
        complete = loop.play_round(done, position.mark.accepted + position.size)
        enough = complete and self._finish_round(loop, done)
        if not complete:
            self._result.arrays = session.arrays()
        every = None if self._checkpoints is None else self._checkpoints.every_rounds
        if not complete or enough or done == self._num_rounds or (every and done % every == 0):
            self._write()
        self.between()
        return complete and not enough

    def _finish_round(self, loop: ArrivalLoop, done: int) -> bool:
        """Evaluate, tell and log a complete round; return whether it may be the last."""
        session, position, end = self._session, self._position, self._end
        with self._nobody_is_late():
            self._result.arrays, metrics = end.aggregate(done)
        if metrics:
            self._result.train_metrics_clientapp[done] = metrics
        central = self._evaluate(done)
        if self._evaluations is not None:
            self._evaluations.begin(done, self._result.arrays, loop.connected)
        now = session.clock()
        line = round_line(done, self._num_rounds, position.mark, session.state, central, now)
        logger.info("%s", line)
        if end.callback is not None:
            with self._nobody_is_late():
                end.callback(done, self._result.arrays, central)
        self._note(server_round=done + 1, mark=mark(session.state, session.clock()))
        return self._far_enough()

    def _far_enough(self) -> bool:
        """Whether the last finished round was the last one; a run that goes on asks it again."""
        stop, done = self._end.early_stop, self._position.server_round - 1
        if stop is None or done == 0:
            return False
        elapsed = self._position.mark.at - self._began
        enough = stop.reached(self._result.evaluate_metrics_serverapp.get(done), elapsed)
        if enough:
            logger.info("The run ends after round %d: %s.", done, enough)
        return enough is not None

    def _wait_for_evaluations(self, loop: ArrivalLoop, evaluations: Evaluations) -> None:
        while evaluations.under_way:
            loop.pause()
            evaluations.take_in(loop.look_who_is_there())
            self._signals.hand_on()

    def _gather(self, wanted: int) -> bool:
        """Wait for nodes; where a run goes on among others, forget those that are not there.

        If all that were connected are there again, it is the world that the run knew, and what
        it knows of nodes that were away stays true as well.
        """
        loop, before = self._loop, set(self._position.connected)
        assert loop is not None
        if before and before <= set(loop.look_who_is_there()):
            return True
        if not loop.wait_for_nodes(wanted):
            return False
        if before & set(loop.connected):
            # The nodes that the run knew come back, one by one as nodes do.
            with self._nobody_is_late():
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
        with self._nobody_is_late():
            metrics = self._end.evaluate_fn(server_round, self._result.arrays)
        if metrics is not None:
            self._result.evaluate_metrics_serverapp[server_round] = metrics
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
    def _nobody_is_late(self) -> Iterator[None]:
        """Do something for as long as it takes: replies that come meanwhile are in time."""
        session, began = self._session, self._session.clock()
        yield
        book = moved(session.state.book, session.clock() - began)
        session.state = replace(session.state, book=book)

    # --- checkpoints --------------------------------------------------------------------------

    def _take_over(self, document: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        session, now = self._session, self._session.clock()
        session.state, self._position = load(document, tensors, session.state, now)
        self._began = now - self._position.elapsed
        if self._position.run_id != self._run_id:
            # A SuperLink refuses to be asked for another run's messages, where it still has
            # them, with an error that looks like a fault of the network.
            for message_id in list(session.state.book):
                session.settle(message_id, Rejected(Reason.LOST))
            self._note(run_id=self._run_id)
        result = self._result
        result.arrays = session.arrays()
        for told, restored in (
            (self._position.train_metrics, result.train_metrics_clientapp),
            (self._position.evaluate_metrics, result.evaluate_metrics_serverapp),
            (self._position.node_metrics, result.evaluate_metrics_clientapp),
        ):
            restored |= {key: MetricRecord(dict(metrics)) for key, metrics in told.items()}

    def _document(self) -> tuple[dict[str, Any], dict[str, Any]]:
        now, result = self._session.clock(), self._result
        self._note(
            now=now,
            elapsed=now - self._began,
            connected=(self._loop and self._loop.connected) or self._position.connected,
            train_metrics={k: dict(v) for k, v in result.train_metrics_clientapp.items()},
            evaluate_metrics={k: dict(v) for k, v in result.evaluate_metrics_serverapp.items()},
            node_metrics={k: dict(v) for k, v in result.evaluate_metrics_clientapp.items()},
        )
        return dump(self._session.state, self._position, self._identity)

    def _write(self) -> None:
        # Rows that lead out of range would do so again: the checkpoints before them are worth more.
        if self._checkpoints is None or self._session.out_of_range:
            return
        self._written = self._session.clock()
        try:
            with self._nobody_is_late():
                path = self._checkpoints.write(*self._document())
        except OSError as error:
            # A full disk costs checkpoints, not the run.
            logger.error(
                "No checkpoint could be written to %s: %s.", self._checkpoints.folder, error
            )
        else:
            logger.debug("Checkpoint %s is written.", path.name)

    def _state_can_be_written(self) -> None:
        try:
            self._document()
        except TypeError as error:
            legal = f"one whose state is tensors and numbers in dataclasses ({error})"
            fix = "leave out checkpoints, or change it"
            raise ConfigError("optimizer", self._identity["optimizer"], legal, fix) from error

    def _note(self, **changes: Any) -> None:
        self._position = replace(self._position, **changes)
