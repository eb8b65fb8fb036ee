"""The events of the runs that the tests share: waiting for them, and their records."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_byzasync import Checkpoints
from tests.deployment.deployment import Deployment

ENDLESS = 100_000
"""Rounds of a run that a test ends."""
BEHAVIOURS = {
    "honest": "honest",
    "victim": "slow",
    "boastful": "boastful",
    "hostile": "hostile",
    "dying": "dying",
}
"""Initial SuperNodes and their behaviours."""
HOSTILE = {
    "CLIENT_ERROR",
    "WRONG_SHAPE",
    "NON_FINITE",
    "UNREADABLE",
    "WRONG_QUERY",
    "MISSING_RECORD",
}
"""Reasons that the hostile node must cause."""
DEAD = {"NODE_GONE", "CRASHED"}
"""Reasons that a killed node and a killed process must cause."""

Entry = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """The final state of a run: its last entry, and its newest checkpoint."""

    entry: Entry
    checkpoint: Path
    accepted: int
    replies: dict[str, int]


@dataclass(frozen=True)
class Resumed:
    """A run that resumes another: its id, its log so far, and its first entry."""

    run: str
    log: str
    entry: Entry


@dataclass(frozen=True)
class Unfinished:
    """The entries before and after some steps during an unfinished upload."""

    before: Entry
    after: Entry


def last(deployment: Deployment) -> Entry:
    return deployment.progress()[-1]


def accepted(deployment: Deployment) -> int:
    return max((entry["accepted"] for entry in deployment.progress()), default=0)


def ended(deployment: Deployment) -> Ended:
    deployment.wait("end of the ServerApp", lambda: not deployment.serverapps(), seconds=60)
    path, document, _ = next(Checkpoints(deployment.output / "checkpoints").read())
    state = document["state"]
    replies = {str(node): saved["accepted"] for node, saved in dict(state["nodes"]).items()}
    return Ended(last(deployment), path, state["accepted"], replies)


def resume(deployment: Deployment, num_rounds: int) -> Resumed:
    run, before = deployment.start_run(num_rounds), len(deployment.progress())
    deployment.wait(
        "round of the resumed run", lambda: len(deployment.progress()) > before, seconds=180
    )
    log = (deployment.output / f"{run}.log").read_text()
    return Resumed(run, log, deployment.progress()[before])
