"""One deployment for all tests, and the events of its runs, as a chain of fixtures."""

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
    Entry,
    Resumed,
    Unfinished,
    last,
)


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Yield a SuperLink with five SuperNodes, which end with the tests."""
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
def trained(deployment: Deployment) -> list[Entry]:
    """Return the first entries of a run, which continues."""
    deployment.start_run(ENDLESS)
    deployment.wait("ten replies", lambda: story.accepted(deployment) >= 10, seconds=180)
    return deployment.progress()


@pytest.fixture(scope="session")
def unfinished(deployment: Deployment, trained: list[Entry]) -> Unfinished:
    """Let a node begin to upload a reply; return the entries before and after ten more steps.

    The upload stays unfinished until the tests end.
    """
    begun = deployment.start_unfinished("unfinished")
    deployment.wait("unfinished upload", begun.exists, seconds=120)
    before = last(deployment)
    deployment.wait(
        "ten steps while a reply is not there in full",
        lambda: last(deployment)["steps"] >= before["steps"] + 10,
        seconds=150,  # Flower abandons the upload after three minutes
    )
    return Unfinished(before, last(deployment))


@pytest.fixture(scope="session")
def killed_node(deployment: Deployment, trained: list[Entry]) -> Entry:
    """Kill a SuperNode while its ClientApp computes; return the last entry before."""
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
def added_node(deployment: Deployment, killed_node: Entry) -> Entry:
    """Start another SuperNode in the middle of the run; return an entry that counts its reply."""
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
def survived(deployment: Deployment, killed_node: Entry, added_node: Entry) -> Entry:
    """Wait until all faults are counted, and the node whose process died has replied."""
    expected, dying = HOSTILE | DEAD, deployment.ids["dying"]
    deployment.wait(
        "count of every fault", lambda: expected <= last(deployment)["reasons"].keys(), seconds=240
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
def killed_server(deployment: Deployment, survived: Entry) -> Ended:
    """Kill the ServerApp's process, and return the run's final state."""
    deployment.kill_serverapp()
    return story.ended(deployment)


@pytest.fixture(scope="session")
def resumed(deployment: Deployment, killed_server: Ended) -> Resumed:
    """Resume in another `flwr run`, which continues."""
    return story.resume(deployment, ENDLESS)


@pytest.fixture(scope="session")
def lost_superlink(deployment: Deployment, resumed: Resumed) -> Ended:
    """Kill the SuperLink, start it again, and return the run's final state."""
    deployment.kill("superlink")
    deployment.start_superlink()
    return story.ended(deployment)


@pytest.fixture(scope="session")
def resumed_again(deployment: Deployment, lost_superlink: Ended) -> Resumed:
    """Resume in another run, with the nodes that have reconnected to the SuperLink."""
    return story.resume(deployment, ENDLESS)


@pytest.fixture(scope="session")
def stopped(deployment: Deployment, resumed_again: Resumed) -> Ended:
    """Stop that run with `flwr stop`, and return its final state."""
    deployment.flwr("stop", resumed_again.run)
    return story.ended(deployment)


@pytest.fixture(scope="session")
def finished(deployment: Deployment, stopped: Ended) -> Resumed:
    """Resume once more, to the end of the last round."""
    last_run = story.resume(deployment, stopped.entry["round"] + 3)
    deployment.wait("result", (deployment.output / "result.json").exists, seconds=120)
    deployment.wait("end of the ServerApp", lambda: not deployment.serverapps(), seconds=60)
    return last_run
