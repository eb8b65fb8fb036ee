"""An app of a user of this package, under the `flwr run` of any release."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from apps.benchmarks.local_flower import REPOSITORY, LocalFlower

pytestmark = pytest.mark.slow

APP = Path(__file__).parent / "app"


@pytest.fixture(scope="module")
def outcome(flower: LocalFlower, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the outcome that the app's ServerApp wrote."""
    folder = tmp_path_factory.mktemp("users_app")
    written = folder / "outcome.json"
    # A copy: `flwr run` moves federations out of a pyproject.toml into FLWR_HOME.
    shutil.copytree(APP, folder / "app")
    # The app's bundle has this package, whatever is installed.
    shutil.copytree(REPOSITORY / "flwr_byzasync", folder / "app" / "flwr_byzasync")
    ran = flower.flwr(
        *("run", str(folder / "app"), "local", "--stream"),
        *("--run-config", f"output='{written}'"),
        seconds=180,
    )
    assert written.is_file(), ran.tail()
    result: dict[str, Any] = json.loads(written.read_text())
    # More than 60 if one node's actor starts late: the first round lasts until the first step.
    assert result["accepted"] >= 60 and result["rejected"] == {}, ran.tail()
    return result


def test_the_run_uses_the_installed_flower(outcome: dict[str, Any]) -> None:
    assert outcome["flwr"] == version("flwr")


def test_every_round_is_completed_and_every_node_weighs_the_same(
    outcome: dict[str, Any],
) -> None:
    assert outcome["rounds"] == [0, 1, 2, 3]
    assert outcome["weights"] == pytest.approx([1 / 3] * 3)


def test_the_model_reaches_the_honest_optimum_with_one_byzantine_node_in_three(
    outcome: dict[str, Any],
) -> None:
    assert outcome["model"]["w"] == pytest.approx([1.0] * 3, abs=0.1)


def test_buffers_are_those_of_some_node(outcome: dict[str, Any]) -> None:
    # Each honest reply adds 1/2 to the one and 1 to the other, from the values in its query.
    assert outcome["model"]["batches"] > 0
    assert outcome["model"]["mean"] == [outcome["model"]["batches"] / 2]
