"""One deployment for all tests, and the events of its runs, each a fixture that follows another."""

from collections.abc import Iterator

import pytest

from tests.deployment import story
from tests.deployment.deployment import Deployment
from tests.deployment.story import (
    BEHAVIOURS,
    DEAD,
    ENDLESS,
    HOSTILE,
    Ended,
    Line,
    Resumed,
    Unfinished,
    last,
)


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Return a SuperLink with five SuperNodes; nothing of it is left when the tests end."""
    deployed = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        deployed.start_superlink()
        for partition, (name, behaviour) in enumerate(BEHAVIOURS.items()):
            deployed.register(name)
            deployed.start_supernode(name, partition, behaviour)
        deployed.register("added")
        deployed.register("unfinished")
        yield deployed
    finally:
        deployed.stop()


@pytest.fixture(scope="session")
def trained(deployment: Deployment) -> list[Line]:
    """Return the first lines of a run, which goes on."""
    deployment.start_run(ENDLESS)
    deployment.wait("ten replies", lambda: story.accepted(deployment) >= 10, seconds=180)
    return deployment.progress()


@pytest.fixture(scope="session")
def unfinished(deployment: Deployment, trained: list[Line]) -> Unfinished:
    """Let a node begin to upload a reply; return the lines around ten steps that follow.

    Nothing of it ends before the tests do: its upload is unfinished in all that comes after.
    """
    begun = deployment.start_unfinished("unfinished")
    deployment.wait("unfinished upload", begun.exists, seconds=120)
    before = last(deployment)
    deployment.wait(
        "ten steps while a reply is not there in full",
        lambda: last(deployment)["steps"] >= before["steps"] + 10,
        seconds=150,  # Flower gives the upload up after three minutes
    )
    return Unfinished(before, last(deployment))


@pytest.fixture(scope="session")
def killed_node(deployment: Deployment, trained: list[Line]) -> Line:
    """Kill a SuperNode while its ClientApp computes; return the last line before."""
    victim = deployment.ids["victim"]
    deployment.wait(
        "reply of the victim", lambda: last(deployment)["replies"].get(victim, 0) > 0, seconds=120
    )
    computing = deployment.output / "computing"
    computing.unlink(missing_ok=True)
    deployment.wait("victim that computes", computing.exists, seconds=120)
    deployment.kill("victim")
    return last(deployment)


@pytest.fixture(scope="session")
def added_node(deployment: Deployment, killed_node: Line) -> Line:
    """Start one more SuperNode in the middle of the run; return a line that knows its reply."""
    deployment.start_supernode("added", len(BEHAVIOURS), "honest")
    added = deployment.ids["added"]
    deployment.wait(
        "reply of the added node", lambda: added in last(deployment)["replies"], seconds=120
    )
    deployment.wait(
        "weight of the added node",
        lambda: last(deployment)["weights"].get(added, 0) > 0,
        seconds=120,
    )
    return last(deployment)


@pytest.fixture(scope="session")
def survived(deployment: Deployment, killed_node: Line, added_node: Line) -> Line:
    """Wait until all faults are counted, and the node whose process died has replied."""
    wanted, dying = HOSTILE | DEAD, deployment.ids["dying"]
    deployment.wait(
        "count of every fault", lambda: wanted <= last(deployment)["reasons"].keys(), seconds=240
    )
    deployment.wait(
        "ten steps since the victim was killed",
        lambda: last(deployment)["steps"] >= killed_node["steps"] + 10,
        seconds=120,
    )
    deployment.wait(
        "reply after the crash",
        lambda: last(deployment)["weights"].get(dying, 0) > 0,
        seconds=120,
    )
    return last(deployment)


@pytest.fixture(scope="session")
def killed_server(deployment: Deployment, survived: Line) -> Ended:
    """Kill the ServerApp's process, and return what it left behind."""
    deployment.kill_serverapp()
    return story.ended(deployment)


@pytest.fixture(scope="session")
def resumed(deployment: Deployment, killed_server: Ended) -> Resumed:
    """Go on in another `flwr run`, which goes on still."""
    return story.resume(deployment, ENDLESS)


@pytest.fixture(scope="session")
def lost_superlink(deployment: Deployment, resumed: Resumed) -> Ended:
    """Kill the SuperLink, start it again, and return what the run left behind."""
    deployment.kill("superlink")
    deployment.start_superlink()
    return story.ended(deployment)


@pytest.fixture(scope="session")
def resumed_again(deployment: Deployment, lost_superlink: Ended) -> Resumed:
    """Go on in another run, among the nodes that have found the SuperLink again."""
    return story.resume(deployment, ENDLESS)


@pytest.fixture(scope="session")
def stopped(deployment: Deployment, resumed_again: Resumed) -> Ended:
    """Stop that run with `flwr stop`, and return what it left behind."""
    deployment.flwr("stop", resumed_again.run)
    return story.ended(deployment)


@pytest.fixture(scope="session")
def finished(deployment: Deployment, stopped: Ended) -> Resumed:
    """Go on once more, to the end of the last round."""
    told = story.resume(deployment, stopped.line["round"] + 3)
    deployment.wait("result", (deployment.output / "result.json").exists, seconds=120)
    deployment.wait("end of the ServerApp", lambda: not deployment.serverapps(), seconds=60)
    return told
