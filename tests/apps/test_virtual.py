"""The reference app runs on VirtualGrid, under attacks of every kind, unchanged."""

from pathlib import Path
from typing import Any

import pytest

from flwr_byzasync import attacks
from flwr_byzasync.attacks import Flood, SlowDown
from flwr_byzasync.simulation import VirtualNode
from tests.apps.virtual import run_app
from tests.tiers import slow

UNEVEN = [VirtualNode(compute=lambda rng: rng.lognormal(0.0, 0.5), network=0.1)] * 10


@pytest.mark.slow
def test_it_trains_under_attack_and_the_mean_does_not(tmp_path: Path) -> None:
    robust = run_app(tmp_path / "robust", UNEVEN, attack="sign_flip(scale=3)")
    ruined = run_app(tmp_path / "mean", UNEVEN, attack="sign_flip(scale=3)", aggregator="mean")
    assert robust["accuracy"] > 0.85 > 0.4 > ruined["accuracy"]
    assert robust["replies"] == 1000 and robust["rejected"] == {}


@pytest.mark.slow
def test_the_same_settings_give_the_same_result(tmp_path: Path) -> None:
    short = {"num_server_rounds": 2, "attack": "little"}
    first, second = (run_app(tmp_path / name, UNEVEN, **short) for name in ("a", "b"))
    for result in (first, second):
        del result["config"]["output-dir"]
    assert first == second


QUICK = "sign_flip"


@pytest.mark.parametrize(
    "name", [name if name == QUICK else slow(name) for name in attacks.discover()]
)
def test_every_attack_runs_in_it_and_ruins_no_robust_rule(name: str, tmp_path: Path) -> None:
    result = run_app(tmp_path, UNEVEN, attack=name, num_server_rounds=4)
    # Attacks towards zero slow a robust rule down; guessing has an accuracy of 0.1.
    least = 0.25 if name in ("empire", "zero") else 0.6
    assert result["replies"] == 200 and result["accuracy"] > least
    # Only vectors that are not finite are rejected.
    assert ("NON_FINITE" in result["rejected"]) == (name in ("inf", "nan"))


@pytest.mark.slow
def test_a_fast_node_gains_weight_and_a_slow_one_has_little(tmp_path: Path) -> None:
    def share(attack: Any) -> float:
        nodes = [VirtualNode(attack=attack)] * 2 + [VirtualNode()] * 8
        result = run_app(
            tmp_path / type(attack).__name__, nodes, num_server_rounds=4, attack="none"
        )
        honest = sum(result["weights"][node] for node in "23456789")
        return 1 - honest / result["replies"]

    # A node that replies at once is queried again at once: it takes almost all weight.
    assert share(Flood()) > 0.9
    assert share(SlowDown()) < 0.1
    assert share(None) == pytest.approx(0.2, abs=0.02)
