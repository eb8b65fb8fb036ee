"""Apps written for FedAvg, with AsyncRobust in its place and nothing else changed."""

import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flwr.serverapp.strategy as stock
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod

from apps.benchmarks import dropin
from flwr_byzasync import AsyncRobust, VirtualGrid
from tests.tiers import slow

SEED = 1
ROUNDS = {"dropin_torch": 20, "dropin_sklearn": 10, "dropin_numpy": 10}
QUICK = "dropin_numpy"
APPS = pytest.mark.parametrize(
    "name", [name if name == QUICK else slow(name) for name in dropin.APPS]
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Silence Flower's log, which would hide a failure."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@lru_cache
def printed(name: str, strategy: str, byzantine: int) -> str:
    """Return the output of a run of an app."""
    return dropin.run(name, strategy, byzantine, SEED, num_server_rounds=ROUNDS[name])


def late(name: str, strategy: str, byzantine: int) -> float:
    """Return the median accuracy of the last rounds: with stale replies single ones fluctuate."""
    return float(np.median(dropin.accuracies(printed(name, strategy, byzantine))[-5:]))


@APPS
def test_without_liars_async_is_about_as_good_as_fedavg(name: str) -> None:
    assert late(name, "fedavg", 0) > 0.85
    assert late(name, "async", 0) > late(name, "fedavg", 0) - 0.05


@APPS
def test_with_four_liars_of_ten_async_is_about_as_good_as_fedavg_without(name: str) -> None:
    assert late(name, "async", dropin.BYZANTINE) > late(name, "fedavg", 0) - 0.05


@APPS
def test_the_same_liars_ruin_fedavg(name: str) -> None:
    assert late(name, "fedavg", dropin.BYZANTINE) < 0.2


@APPS
def test_the_same_liars_cost_fedmedian_something_and_do_not_ruin_it(name: str) -> None:
    attacked = late(name, "fedmedian", dropin.BYZANTINE)
    assert 0.6 < attacked < late(name, "fedmedian", 0)


@APPS
@pytest.mark.parametrize("strategy", ["fedavg", "async"])
def test_a_result_is_printed_as_flower_prints_it(name: str, strategy: str) -> None:
    output = printed(name, strategy, 0)
    parts = re.split(r"^(.+ Metrics|Global Arrays):$", output, flags=re.M)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    rounds = {
        title: [int(k) for k in re.findall(r"(\d+): {", text)] for title, text in sections.items()
    }
    assert rounds["ServerApp-side Evaluate Metrics"] == list(range(ROUNDS[name] + 1))
    assert rounds["Aggregated ClientApp-side Train Metrics"] == list(range(1, ROUNDS[name] + 1))
    assert rounds["Aggregated ClientApp-side Evaluate Metrics"] == list(range(1, ROUNDS[name] + 1))
    assert "num-examples" not in output
    # Metrics that are lists of floats come out as lists.
    assert len(re.findall(r"'loss_[a-z_]+': \"\['", output)) == ROUNDS[name]


def test_a_pytorch_model_is_saved_with_its_integer_buffers(tmp_path: Path) -> None:
    path = tmp_path / "final.pt"
    output = dropin.run("dropin_torch", "async", 0, SEED, num_server_rounds=2, save_to=str(path))
    assert f"The final model is in {path}." in output
    saved = torch.load(path, weights_only=True)
    from dropin_torch.task import Net  # on the path since the app was loaded

    fresh = Net().state_dict()
    assert {k: (v.shape, v.dtype) for k, v in saved.items()} == {
        k: (v.shape, v.dtype) for k, v in fresh.items()
    }
    # 2 epochs of 3 batches per reply: the count of some node, never an average.
    assert int(saved["norm1.num_batches_tracked"]) in {6, 12}
    assert float(saved["norm1.running_var"].min()) > 0
    Net().load_state_dict(saved)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("dropin_sklearn", {"coefficients": (10, 64), "intercepts": (10,)}),
        ("dropin_numpy", {"weights": (20, 5), "biases": (5,)}),
    ],
)
def test_a_numpy_model_is_saved_in_float64(
    name: str, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    path = tmp_path / "final.npz"
    dropin.run(name, "async", 0, SEED, num_server_rounds=1, save_to=str(path))
    with np.load(path) as saved:
        assert {key: (a.shape, a.dtype) for key, a in saved.items()} == {
            key: (shape, np.dtype(np.float64)) for key, shape in shapes.items()
        }


@pytest.mark.parametrize("name", [slow("dropin_sklearn"), "dropin_numpy"])
def test_a_client_on_numpy_imports_no_torch(name: str) -> None:
    code = f"import sys, {name}.client_app; sys.exit('torch' in sys.modules)"
    folder = dropin.folder_of(name)
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, check=False).returncode == 0


def test_the_clients_do_not_use_this_package() -> None:
    for name in dropin.APPS:
        for module in ("client_app", "task"):
            text = (dropin.folder_of(name) / name / f"{module}.py").read_text(encoding="utf-8")
            assert "byz." not in text and "flwr_byzasync" not in text


@pytest.mark.parametrize(
    ("name", "mod"),
    [
        ("ServerSideFixedClipping", None),
        ("ServerSideAdaptiveClipping", None),
        ("ClientSideFixedClipping", fixedclipping_mod),
        ("ClientSideAdaptiveClipping", adaptiveclipping_mod),
    ],
)
def test_it_trains_inside_flower_s_wrappers_for_differential_privacy(name: str, mod: Any) -> None:
    _, client, config = dropin.load("dropin_numpy")
    from dropin_numpy import server_app, task

    def app(message: Message, context: Context) -> Message:
        reply: Message = mod(message, context, client) if mod else client(message, context)
        return reply

    strategy = AsyncRobust()
    norm = {"clipping_norm": 10.0} if "Fixed" in name else {}
    wrapped = getattr(stock, f"DifferentialPrivacy{name}")(
        strategy, noise_multiplier=0.01, num_sampled_clients=10, **norm
    )
    with VirtualGrid(app, dropin.NODES, run_config=config) as grid:
        start = ArrayRecord(task.initial(SEED))
        result = wrapped.start(grid, start, 6, evaluate_fn=server_app.central_evaluation)
    accuracy = result.evaluate_metrics_serverapp[6]["accuracy"]
    assert isinstance(accuracy, float) and accuracy > 0.8
    assert strategy.statistics().steps > 0 and not strategy.statistics().reasons


def test_accounting_of_privacy_is_refused_by_flower_itself() -> None:
    accounting = pytest.importorskip("flwr.supercore.privacy_accounting")
    config = SimpleNamespace(sampling_method=accounting.SamplingMethod.NO_AMPLIFICATION)
    with pytest.raises(ValueError, match=r"FedAvg\.aggregate_train"):
        stock.DifferentialPrivacyServerSideFixedClipping(
            AsyncRobust(), 0.01, 10.0, 10, accountant=SimpleNamespace(config=config)
        )
