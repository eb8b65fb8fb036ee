"""The events of the runs that the tests share: what is waited for, and what is told of it."""

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
"""SuperNodes of the start, and how they behave."""
HOSTILE = {
    "CLIENT_ERROR",
    "WRONG_SHAPE",
    "NON_FINITE",
    "UNREADABLE",
    "WRONG_QUERY",
    "MISSING_RECORD",
}
"""What the hostile node is to be counted for."""
DEAD = {"NODE_GONE", "CRASHED"}
"""What a node and a process that are killed are to be counted for."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """What was there when a run had been ended: its last line, and its newest checkpoint."""

    line: Line
    checkpoint: Path
    accepted: int
    replies: dict[str, int]


@dataclass(frozen=True)
class Resumed:
    """A run that goes on after another: its id, its log so far, and its first line."""

    run: str
    log: str
    line: Line


@dataclass(frozen=True)
class Unfinished:
    """The lines before and after some steps that were made while an upload hung."""

    before: Line
    after: Line


def last(deployment: Deployment) -> Line:
    return deployment.progress()[-1]


def accepted(deployment: Deployment) -> int:
    return max((line["accepted"] for line in deployment.progress()), default=0)


def ended(deployment: Deployment) -> Ended:
    deployment.wait("end of the ServerApp", lambda: not deployment.serverapps(), seconds=60)
    path, document, _ = next(Checkpoints(deployment.output / "checkpoints").read())
    state = document["state"]
    replies = {str(node): told["accepted"] for node, told in dict(state["nodes"]).items()}
    return Ended(last(deployment), path, state["accepted"], replies)


def resume(deployment: Deployment, num_rounds: int) -> Resumed:
    run, before = deployment.start_run(num_rounds), len(deployment.progress())
    deployment.wait(
        "round of the run that goes on", lambda: len(deployment.progress()) > before, seconds=180
    )
    log = (deployment.output / f"{run}.log").read_text()
    return Resumed(run, log, deployment.progress()[before])
