"""Where a run is, and its checkpoints: when to write one, and how to resume from one."""

import json
from collections.abc import Mapping
from dataclasses import replace
from logging import getLogger
from typing import Any

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from flwr_byzasync.checkpoints.codec import MisfitError
from flwr_byzasync.checkpoints.content import Position
from flwr_byzasync.checkpoints.files import Checkpoints
from flwr_byzasync.checkpoints.snapshot import check_fingerprint, dump, load
from flwr_byzasync.core.events import on_clock_paused
from flwr_byzasync.core.pending_evaluations import on_other_run
from flwr_byzasync.core.state import Rejected
from flwr_byzasync.core.statistics import round_start
from flwr_byzasync.errors import ConfigError, Reason
from flwr_byzasync.server.endpoint import Endpoint

logger = getLogger("flwr")

KINDS = ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp")
"""Fields of `Result` that hold metrics by round."""


class CheckpointManager:
    """The position of one run, its metrics, and its checkpoints.

    Parameters
    ----------
    endpoint : Endpoint
        At the initial model.
    result : Result
        Filled with metrics as they are recorded.
    checkpoints : Checkpoints or None
        Where checkpoints are written; None: nowhere.
    fingerprint : mapping of str to str
        What must be the same when the run resumes.
    run_id : int
        Flower's id of this `flwr run`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        result: Result,
        checkpoints: Checkpoints | None,
        fingerprint: Mapping[str, str],
        run_id: int,
    ) -> None:
        self._endpoint, self._result, self.checkpoints = endpoint, result, checkpoints
        self._fingerprint, self._run_id = fingerprint, run_id
        now = endpoint.clock()
        start = round_start(endpoint.state, now)
        self.position = Position(now, 0.0, 1, 0, start, run_id=run_id)
        self._began = self._written = now
        self._history: list[str] = []
        self._saved = self._progress

    def elapsed_at(self, now: float) -> float:
        """Return the seconds since the run began, in all its processes."""
        return now - self._began

    def update_position(self, **changes: Any) -> None:
        """Change fields of the position."""
        self.position = replace(self.position, **changes)

    def reset_timer(self) -> None:
        """Count the seconds to the next checkpoint from now."""
        self._written = self._endpoint.clock()

    def record_metrics(self, kind: str, server_round: int, metrics: MetricRecord) -> None:
        """Store metrics in the result's field of that name, and in the history."""
        getattr(self._result, kind)[server_round] = metrics
        if self.checkpoints is not None:
            self._history.append(json.dumps([kind, server_round, dict(metrics)]) + "\n")

    # --- reading ------------------------------------------------------------------------------

    def recover(self) -> None:
        """Resume from the latest complete checkpoint, if asked to and if there is one.

        Raises
        ------
        ConfigError
            If the run in the folder has another model, rule or optimizer, none of its
            checkpoints is complete, or there are some and `resume` is False.
        """
        if self.checkpoints is None:
            return
        found = self.checkpoints.paths()
        if found and not self.checkpoints.resume:
            legal = f"True where the folder holds a run: {found[0]} exists"
            fix = "pass Checkpoints(..., resume=True) to resume it, or another folder to begin anew"
            raise ConfigError("resume", False, legal, fix)
        for path, document, tensors in self.checkpoints.read():
            try:
                check_fingerprint(document.get("fingerprint"), self._fingerprint, path.name)
                self._restore(document, tensors)
            except MisfitError as error:
                logger.warning("Checkpoint %s is not used: %s.", path.name, error)
                continue
            logger.info(
                "Resuming from %s: round %d, %d replies, after %.0f seconds.",
                path.name,
                self.position.server_round,
                self._endpoint.state.accepted,
                self.position.elapsed,
            )
            return
        if found:
            legal = "a folder with a complete checkpoint: the log says what is wrong with each"
            fix = "restore one from a copy, or begin a new run in another folder"
            raise ConfigError("folder", str(self.checkpoints.folder), legal, fix)
        self._check_writable()

    def _restore(self, document: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        endpoint, now = self._endpoint, self._endpoint.clock()
        state, position = load(document, tensors, endpoint.state, now)
        history = read_history(position.history)
        endpoint.state, self.position = state, position
        self._began = now - self.position.elapsed
        if self.position.run_id != self._run_id:
            # A SuperLink refuses to return another run's messages, with an error that looks like
            # a fault of the network.
            for message_id in list(endpoint.state.in_flight):
                endpoint.apply(message_id, Rejected(Reason.LOST))
            evaluations = on_other_run(self.position.evaluations)
            self.update_position(run_id=self._run_id, evaluations=evaluations)
        self._result.arrays = endpoint.arrays()
        self._history = self.position.history.splitlines(keepends=True)
        for kind, server_round, metrics in sorted(history, key=lambda entry: entry[1]):
            getattr(self._result, kind)[server_round] = metrics
        self._saved = self._progress

    # --- writing ------------------------------------------------------------------------------

    @property
    def checkpoint_due(self) -> bool:
        """Whether it is time to write one between two replies."""
        every = None if self.checkpoints is None else self.checkpoints.every_seconds
        return every is not None and self._endpoint.clock() - self._written >= every

    def due_after(self, server_round: int) -> bool:
        """Whether one is to be written after a round."""
        every = None if self.checkpoints is None else self.checkpoints.every_rounds
        return every is not None and server_round % every == 0

    @property
    def has_unsaved(self) -> bool:
        """Whether replies or rounds would be lost if the process died now."""
        return self._saved != self._progress

    def write(self) -> None:
        """Write a checkpoint, if there is a folder for it.

        Skipped after an overflow or in an inconsistent state: the previous checkpoint is safer.
        """
        endpoint = self._endpoint
        if self.checkpoints is None or endpoint.out_of_range or endpoint.inconsistent:
            return
        began = self._written = endpoint.clock()
        try:
            path = self.checkpoints.write(*self._document())
        except (OSError, MisfitError) as error:
            # A full disk, or a third party's optimizer that keeps something else where a number
            # was, costs checkpoints but not the run.
            folder = self.checkpoints.folder
            logger.error("No checkpoint could be written to %s: %s.", folder, error)
        else:
            self._saved = self._progress
            logger.debug("Wrote checkpoint %s.", path.name)
        endpoint.state = on_clock_paused(endpoint.state, endpoint.clock() - began)

    @property
    def _progress(self) -> tuple[int, int]:
        return self._endpoint.state.accepted, self.position.server_round

    def _document(self) -> tuple[dict[str, Any], dict[str, Any]]:
        now, history = self._endpoint.clock(), "".join(self._history)
        self.update_position(now=now, elapsed=self.elapsed_at(now), history=history)
        return dump(self._endpoint.state, self.position, self._fingerprint)

    def _check_writable(self) -> None:
        try:
            self._document()
        except TypeError as error:
            legal = f"one whose state is tensors and numbers in dataclasses ({error})"
            fix = "leave out checkpoints, or change it"
            raise ConfigError("optimizer", self._fingerprint["optimizer"], legal, fix) from error


def read_history(text: str) -> list[tuple[str, int, MetricRecord]]:
    """Return the metrics of all rounds from their text: kind, round and record of each entry.

    Raises
    ------
    MisfitError
        If that is not what the text holds.
    """
    try:
        entries = [json.loads(line) for line in text.splitlines()]
        read = [(kind, number, MetricRecord(dict(metrics))) for kind, number, metrics in entries]
    except (ValueError, TypeError, RecursionError) as error:
        raise MisfitError(f"its metrics cannot be read ({type(error).__name__})") from error
    if not all(kind in KINDS and type(n) is int and n >= 0 for kind, n, _ in read):
        raise MisfitError("its metrics are of no round")
    return read
