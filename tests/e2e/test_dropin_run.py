"""An app written for FedAvg under the real `flwr run`, with AsyncRobust in its place."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from apps.benchmarks import dropin
from apps.benchmarks.local_flower import REPOSITORY, LocalFlower

pytestmark = pytest.mark.slow

ROUNDS = 6


def test_an_app_with_one_line_changed_trains_beside_liars(
    flower: LocalFlower, tmp_path: Path
) -> None:
    # The package travels in the bundle, as docs/migration.md proposes.
    app, saved = tmp_path / "app", tmp_path / "final.npz"
    shutil.copytree(dropin.folder_of("dropin_numpy"), app)
    shutil.copytree(REPOSITORY / "flwr_byzasync", app / "flwr_byzasync")
    run = flower.run(
        f"strategy='async' byzantine-nodes=4 num-server-rounds={ROUNDS} save-to='{saved}'", app=app
    )
    assert run.status == "finished:completed", run.tail()
    assert "Traceback" not in run.log, run.tail()
    accuracies = dropin.accuracies(run.log)
    assert len(accuracies) == ROUNDS + 1, run.tail()
    assert accuracies[-1] > 0.85, run.tail()
    assert f"The final model is in {saved}." in run.log
    with np.load(saved) as model:
        assert model["weights"].shape == (20, 5)
