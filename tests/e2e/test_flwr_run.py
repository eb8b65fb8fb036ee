"""The reference app under the real `flwr run`: bundle, SuperLink, Ray and all."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from apps.benchmarks.local_flower import REPOSITORY, LocalFlower, Run
from apps.train.tasks import discover
from tests.releases import since

pytestmark = [
    pytest.mark.slow,
    since(1, 41, "the reference app is run by `flwr run --federation-config`"),
]

ROUNDS, UPDATES, NODES = 3, 20, 10
CODE = {"apps", "flwr_byzasync"}
TRAINING = "Starting AsyncRobust strategy"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output-dir of the successful run; the app creates it."""
    return tmp_path_factory.mktemp("run") / "output"


@pytest.fixture(scope="module")
def run(flower: LocalFlower, output: Path) -> Run:
    """Return a short run under attack with a model that has buffers."""
    finished = flower.run(
        f'model="mlp-bn" attack="sign_flip" device="cpu" num-server-rounds={ROUNDS} '
        f'updates-per-round={UPDATES} output-dir="{output}"',
        nodes=NODES,
    )
    assert finished.status == "finished:completed", finished.tail()
    return finished


@pytest.fixture(scope="module")
def result(run: Run, output: Path) -> dict[str, Any]:
    """Return result.json of the successful run."""
    assert (output / "result.json").is_file(), run.tail()
    summary: dict[str, Any] = json.loads((output / "result.json").read_text())
    return summary


@pytest.fixture(scope="module")
def metrics(result: dict[str, Any], output: Path) -> list[dict[str, Any]]:
    """Return the entries of metrics.jsonl of the successful run."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def replies(metrics: list[dict[str, Any]]) -> list[int]:
    """Return the replies counted at the start and at the end of each round.

    The first round lasts until the first step, which waits for every node: if the actor of one
    starts late, the others reply more than `UPDATES` times before.
    """
    first = max(UPDATES, metrics[1]["replies"])
    return [0, *(first + UPDATES * k for k in range(ROUNDS))]


@pytest.fixture(scope="module")
def model(run: Run, output: Path) -> nn.Module:
    """Return the final model of the successful run."""
    assert (output / "model.safetensors").is_file(), run.tail()
    saved = discover()["digits"].make_model("mlp-bn", seed=2)
    saved.load_state_dict(load_file(output / "model.safetensors"), strict=True)
    return saved.eval()


def log_lines(run: Run, mark: str) -> list[str]:
    return [line for line in run.log.splitlines() if mark in line]


def test_a_short_run_under_attack_completes(run: Run) -> None:
    assert run.status == "finished:completed", run.tail()
    assert "Traceback" not in run.log, run.tail()


def test_the_run_executes_a_bundle_of_the_app_and_the_package_alone(
    flower: LocalFlower, run: Run
) -> None:
    assert str(flower.home / "apps") in run.log, run.tail()
    bundles = [path for path in (flower.home / "apps").iterdir() if "dropin" not in path.name]
    assert bundles
    for bundle in bundles:
        assert {path.name for path in bundle.iterdir() if path.is_dir()} == CODE


def test_the_result_counts_every_reply_of_every_round(
    result: dict[str, Any], replies: list[int]
) -> None:
    assert (result["replies"], result["rounds"]) == (replies[-1], ROUNDS)
    assert sum(result["weights"].values()) == replies[-1]


def test_only_a_late_first_step_makes_the_first_round_longer(
    result: dict[str, Any], replies: list[int]
) -> None:
    # Each reply makes a step, from the first step on, which needs a reply of every node.
    before = result["replies"] - result["steps"]
    assert before >= NODES - 1
    assert replies[1] == max(UPDATES, before + 1)


def test_the_result_names_nodes_by_partition(result: dict[str, Any]) -> None:
    assert set(result["weights"]) == {str(partition) for partition in range(NODES)}


def test_the_result_has_no_rejected_replies(result: dict[str, Any]) -> None:
    assert result["rejected"] == {}


def test_the_result_has_the_settings_that_were_overridden_and_those_that_were_not(
    result: dict[str, Any], output: Path
) -> None:
    config = result["config"]
    assert config["model"] == "mlp-bn" and config["output-dir"] == str(output)
    assert config["updates-per-round"] == UPDATES
    assert config["optimizer"] == "mu2" and config["byzantine-nodes"] == 4


def test_the_metrics_have_one_line_for_the_start_and_for_each_round(
    result: dict[str, Any], metrics: list[dict[str, Any]], replies: list[int]
) -> None:
    assert [line["round"] for line in metrics] == list(range(ROUNDS + 1))
    assert [line["replies"] for line in metrics] == replies
    assert metrics[-1]["accuracy"] == result["accuracy"]
    assert metrics[-1]["loss"] == result["loss"]


def test_the_saved_model_has_exactly_the_reported_accuracy(
    model: nn.Module, result: dict[str, Any]
) -> None:
    test = discover()["digits"].load("")[1]
    with torch.no_grad():
        outputs: Tensor = model(test.inputs)
    accuracy = float((outputs.argmax(dim=1) == test.labels).float().mean())
    loss = float(nn.functional.cross_entropy(outputs, test.labels))
    assert accuracy == result["accuracy"]
    assert loss == pytest.approx(result["loss"], rel=1e-5)


def test_batch_norm_statistics_reach_the_saved_model(model: nn.Module) -> None:
    fresh = discover()["digits"].make_model("mlp-bn", seed=1).state_dict()
    saved = model.state_dict()
    for name in ("1.running_mean", "1.running_var"):
        assert torch.isfinite(saved[name]).all(), name
        assert not torch.equal(saved[name], fresh[name]), name
    assert bool((saved["1.running_var"] > 0).all())


def test_the_weights_of_the_saved_model_have_moved(model: nn.Module) -> None:
    fresh = discover()["digits"].make_model("mlp-bn", seed=1).state_dict()
    # Except the bias before the normalisation, which has no gradient.
    for name in ("0.weight", "1.weight", "1.bias", "3.weight", "3.bias"):
        assert not torch.equal(model.state_dict()[name], fresh[name]), name


def test_the_log_has_one_line_for_each_round(run: Run, replies: list[int]) -> None:
    lines = log_lines(run, "[ROUND ")
    number = r"\d+(\.\d+)?(e-?\d+)?"
    for k, line in enumerate(lines, start=1):
        assert re.search(
            rf"\[ROUND {k}/{ROUNDS}\] {replies[k]} replies \({number}/s\) \| "
            rf"accuracy {number}, loss {number} \| staleness {number} \| "
            r"rejected 0 \| \d+:\d\d:\d\d left$",
            line,
        ), line
    assert len(lines) == ROUNDS, run.tail()


def test_the_log_ends_with_a_table_that_agrees_with_the_result(
    run: Run, result: dict[str, Any], replies: list[int]
) -> None:
    table = run.log[run.log.index("Result\n") :]
    by_node = " ".join(f"{part}:{result['weights'][str(part)]}" for part in range(NODES))
    byzantine = sum(result["weights"][str(part)] for part in range(4))
    expected = {
        "aggregator": "ctma(gm) (byz-fraction 0.45)",
        "attack": "sign_flip by nodes 0 .. 3",
        "accuracy": f"{result['accuracy']:.4f}",
        "loss": f"{result['loss']:.4f}",
        "replies": f"{replies[-1]} in ",
        "replies by node": by_node,
        "Byzantine weight": f"{byzantine / replies[-1]:.1%}",
        "rejected": "none",
    }
    for name, value in expected.items():
        assert re.search(rf" {name} +{re.escape(value)}", table), f"{name} {value} not in\n{table}"


def test_a_wrong_value_ends_the_run_with_one_sentence_before_training(
    flower: LocalFlower, tmp_path: Path
) -> None:
    """Other values are in tests/apps/test_train.py; this is one under `flwr run`."""
    output = tmp_path / "output"
    # One actor is enough without training.
    wrong = flower.run(
        f'aggregator="nope" output-dir="{output}"', nodes=1, resources="init-args-num-cpus=1"
    )
    assert wrong.status == "finished:failed", wrong.tail()
    errors = [line for line in log_lines(wrong, " is not legal: ") if line.startswith("ERROR")]
    assert len(errors) == 1, wrong.tail()
    sentence = r"it must be one of .*ctma.*gm.*; write for example .+\."
    assert re.search(rf" aggregator='nope' is not legal: {sentence}$", errors[0]), errors[0]
    assert TRAINING not in wrong.log, wrong.tail()
    assert not output.exists()


def test_too_few_nodes_stop_the_run_with_the_command_to_run(flower: LocalFlower) -> None:
    stopped = flower.run("seed=1", nodes=2, resources="init-args-num-cpus=1")
    assert stopped.status == "finished:failed", stopped.tail()
    errors = [line for line in log_lines(stopped, "quorum=10 ") if line.startswith("ERROR")]
    assert len(errors) == 1, stopped.tail()
    assert "the 2 nodes of the federation" in errors[0]
    assert (
        'flwr run . --federation-config "num-supernodes=10 client-resources-num-cpus=1" --stream'
    ) in errors[0]
    assert TRAINING not in stopped.log, stopped.tail()


def test_a_key_that_the_app_does_not_have_is_refused_by_flwr(flower: LocalFlower) -> None:
    refused = flower.flwr("run", str(REPOSITORY), "--run-config", "nonsense=1")
    assert refused.exit_code != 0, refused.tail()
    assert "Invalid run configuration" in refused.log, refused.tail()
    assert "Successfully started run" not in refused.log, refused.tail()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_ten_nodes_train_on_one_cuda_device(flower: LocalFlower, tmp_path: Path) -> None:
    output = tmp_path / "output"
    trained = flower.run(
        f'device="cuda" num-server-rounds=2 updates-per-round=20 output-dir="{output}"',
        resources="client-resources-num-gpus=0.1",
        seconds=400,
    )
    assert trained.status == "finished:completed", trained.tail()
    assert "Device: cuda" in trained.log, trained.tail()
    summary = json.loads((output / "result.json").read_text())
    assert (summary["replies"], summary["rejected"], summary["config"]["device"]) == (
        40,
        {},
        "cuda",
    )
