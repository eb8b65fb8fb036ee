"""Where a run is, and what is written down of it: to be gone on with after its death."""

import json
from collections.abc import Mapping
from dataclasses import replace
from logging import getLogger
from typing import Any

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from flwr_byzasync.checkpoints.codec import MisfitError
from flwr_byzasync.checkpoints.files import Checkpoints
from flwr_byzasync.checkpoints.snapshot import Position, check_identity, dump, load
from flwr_byzasync.core.events import on_standstill
from flwr_byzasync.core.state import Rejected
from flwr_byzasync.core.statistics import round_start
from flwr_byzasync.errors import ConfigError, Reason
from flwr_byzasync.server.endpoint import Endpoint

logger = getLogger("flwr")


class CheckpointManager:
    """The position of one run, its metrics, and its checkpoints.

    Parameters
    ----------
    session : Session
        At the initial model.
    result : Result
        Filled as metrics are told.
    checkpoints : Checkpoints or None
        Where the run is written down; None: nowhere.
    identity : mapping of str to str
        What must be the same when the run goes on.
    run_id : int
        Flower's id of this `flwr run`.
    """

    def __init__(
        self,
        session: Endpoint,
        result: Result,
        checkpoints: Checkpoints | None,
        identity: Mapping[str, str],
        run_id: int,
    ) -> None:
        self._session, self._result, self.checkpoints = session, result, checkpoints
        self._identity, self._run_id = identity, run_id
        now = session.clock()
        self.position = Position(now, 0.0, 1, 0, round_start(session.state, now), run_id=run_id)
        self._began = self._written = now
        self._history: list[str] = []
        self._saved = self._reached

    def elapsed_at(self, now: float) -> float:
        """Return the seconds since the run began, in all its processes."""
        return now - self._began

    def update_position(self, **changes: Any) -> None:
        """Change the position."""
        self.position = replace(self.position, **changes)

    def reset_timer(self) -> None:
        """Have the time to the next checkpoint begin now."""
        self._written = self._session.clock()

    def record_metrics(self, where: str, server_round: int, metrics: MetricRecord) -> None:
        """Put metrics into the result's field of that name, and into the history."""
        getattr(self._result, where)[server_round] = metrics
        if self.checkpoints is not None:
            self._history.append(json.dumps([where, server_round, dict(metrics)]) + "\n")

    # --- reading ------------------------------------------------------------------------------

    def recover(self, resume: bool) -> None:
        """Go on from the newest whole checkpoint if asked to, and if there is one.

        Raises
        ------
        ConfigError
            If the run in the folder is of another model, rule or optimizer, none of its
            checkpoints is whole, or there are some and `resume` is False.
        """
        if self.checkpoints is None:
            return
        found = self.checkpoints.paths()
        if found and not resume:
            legal = f"True where the folder holds a run: {found[0]} is there"
            fix = "pass resume=True to go on with it, or another folder to begin anew"
            raise ConfigError("resume", resume, legal, fix)
        for path, document, tensors in self.checkpoints.read():
            check_identity(document.get("identity", {}), self._identity, path.name)
            try:
                self._take_over(document, tensors)
            except MisfitError as error:
                logger.warning("Checkpoint %s is not used: %s.", path.name, error)
                continue
            position = self.position
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
            raise ConfigError("folder", str(self.checkpoints.folder), legal, fix)
        self._state_can_be_written()

    def _take_over(self, document: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        session, now = self._session, self._session.clock()
        session.state, self.position = load(document, tensors, session.state, now)
        self._began = now - self.position.elapsed
        if self.position.run_id != self._run_id:
            # A SuperLink refuses to be asked for another run's messages, where it still has
            # them, with an error that looks like a fault of the network.
            for message_id in list(session.state.in_flight):
                session.apply(message_id, Rejected(Reason.LOST))
            questions = replace(self.position.evaluations, requests={})
            self.update_position(run_id=self._run_id, evaluations=questions)
        self._result.arrays = session.arrays()
        self._history = self.position.history.splitlines(keepends=True)
        lines = [json.loads(line) for line in self._history]
        for where, server_round, metrics in sorted(lines, key=lambda line: line[1]):
            getattr(self._result, where)[server_round] = MetricRecord(metrics)
        self._saved = self._reached

    # --- writing ------------------------------------------------------------------------------

    @property
    def checkpoint_due(self) -> bool:
        """Whether it is time to write between two replies."""
        every = None if self.checkpoints is None else self.checkpoints.every_seconds
        return every is not None and self._session.clock() - self._written >= every

    def due_after(self, server_round: int) -> bool:
        """Whether one is to be written after a round."""
        every = None if self.checkpoints is None else self.checkpoints.every_rounds
        return every is not None and server_round % every == 0

    @property
    def has_unsaved(self) -> bool:
        """Whether replies or rounds would be lost if the process died now."""
        return self._saved != self._reached

    def write(self) -> None:
        """Write a checkpoint, unless there are none or the state is not worth one.

        Rows that lead out of the range of numbers would do so again, and a state that is torn is
        none: the checkpoints before are worth more.
        """
        session = self._session
        if self.checkpoints is None or session.out_of_range or session.inconsistent:
            return
        began = self._written = session.clock()
        try:
            path = self.checkpoints.write(*self._document())
        except (OSError, MisfitError) as error:
            # A full disk costs checkpoints, not the run; so does what an optimizer of a third
            # party has put where a number was.
            logger.error(
                "No checkpoint could be written to %s: %s.", self.checkpoints.folder, error
            )
        else:
            self._saved = self._reached
            logger.debug("Checkpoint %s is written.", path.name)
        session.state = on_standstill(session.state, session.clock() - began)

    @property
    def _reached(self) -> tuple[int, int]:
        return self._session.state.accepted, self.position.server_round

    def _document(self) -> tuple[dict[str, Any], dict[str, Any]]:
        now, history = self._session.clock(), "".join(self._history)
        self.update_position(now=now, elapsed=self.elapsed_at(now), history=history)
        return dump(self._session.state, self.position, self._identity)

    def _state_can_be_written(self) -> None:
        try:
            self._document()
        except TypeError as error:
            legal = f"one whose state is tensors and numbers in dataclasses ({error})"
            fix = "leave out checkpoints, or change it"
            raise ConfigError("optimizer", self._identity["optimizer"], legal, fix) from error
