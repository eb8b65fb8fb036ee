"""The reference app's settings, data and report; tests/e2e runs all of it."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from apps.train.client_app import attack_of, gradient, partition_of
from apps.train.report import byzantine_share
from apps.train.server_app import check_nodes
from apps.train.settings import Settings
from apps.train.tasks import discover
from flwr_byzasync import ConfigError, Query, Statistics
from flwr_byzasync.attacks import LabelFlip, SignFlip
from flwr_byzasync.optimizers import SGD, AnyTimeSGD

ROOT = Path(__file__).parents[2]
DEFAULTS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"][
    "app"
]["config"]


def settings(**changes: Any) -> Settings:
    return Settings.of(DEFAULTS | {key.replace("_", "-"): v for key, v in changes.items()})


def node(partition: int, **changes: Any) -> Context:
    run_config = DEFAULTS | {key.replace("_", "-"): v for key, v in changes.items()}
    return Context(
        1, 2, {"partition-id": partition, "num-partitions": 10}, RecordDict(), run_config
    )


class InMemoryGrid:
    """Named like Flower's grid of a simulation, to which no more nodes connect."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes

    def get_node_ids(self) -> list[int]:
        return list(range(self._nodes))


def test_the_defaults_in_pyproject_are_legal() -> None:
    assert settings().aggregator == "ctma(gm)"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("aggregator", "krumm"), ("aggregator", "ctma"), ("aggregator", 3), ("attack", "nuke"),
        ("optimizer", "adam"), ("dataset", "imagenet"), ("dataset", 3), ("model", "resnet"),
        ("model", "cnn"), ("model", 1), ("partition", "sorted"), ("partition", 1),
        ("partition", "dirichlet"), ("partition", "dirichlet()"), ("partition", "dirichlet(0)"),
        ("partition", "dirichlet(-1)"), ("partition", "dirichlet(nan)"),
        ("partition", "dirichlet(inf)"), ("partition", "dirichlet(0.5"),
        ("partition", "dirichlet(a)"), ("partition", " iid"), ("download", "true"),
        ("download", 1), ("device", "tpu"), ("byz-fraction", 0.5), ("byz-fraction", -0.1),
        ("byz-fraction", "0.4"), ("byzantine-nodes", -1),
        ("byzantine-nodes", 1.0), ("lr", -0.1), ("lr", 0), ("lr", float("nan")), ("lr", "oops"),
        ("lr", True), ("beta", 1.5), ("beta", -0.5), ("beta", "x"), ("beta", 0.0), ("gamma", 0.0),
        ("gamma", 2), ("batch-size", 0), ("batch-size", 3.5), ("num-server-rounds", 0),
        ("updates-per-round", "many"), ("quorum", 0), ("seed", -1), ("seed", 2**63),
        ("data-dir", "data"), ("data-dir", "/no/such/folder"), ("output-dir", "out"),
        ("output-dir", 5), ("nonsense", 1), ("weights", "count"), ("weights", 1),
        ("max-share", 0.0), ("max-share", 1.1), ("max-share", "0.2"), ("max-rate", 0.5),
        ("max-rate", -1), ("max-rate", True), ("checkpoint-seconds", 0.5),
        ("checkpoint-seconds", "60"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_sentence_with_key_value_range_and_fix(
    key: str, value: object
) -> None:
    with pytest.raises(ConfigError) as refused:
        Settings.of(DEFAULTS | {key: value})
    text = str(refused.value)
    assert (key in text or "beta" in text) and " is not legal: it must be " in text
    assert "; " in text and text.endswith(".") and "\n" not in text


def test_a_missing_key_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no seed"):
        Settings.of({key: value for key, value in DEFAULTS.items() if key != "seed"})


def test_integers_are_accepted_for_floats() -> None:
    assert settings(lr=1).lr == 1.0


def test_beta_of_minus_one_is_the_optimizer_s_default() -> None:
    assert settings(beta=-1.0).chosen_beta is None
    assert settings(beta=-1).chosen_beta is None
    assert settings(beta=0.5).chosen_beta == 0.5


def test_mu2_steps_by_anytime_and_the_baselines_by_plain_sgd() -> None:
    assert settings(optimizer="mu2").server_optimizer() == AnyTimeSGD(lr=0.015, gamma=0.1)
    assert settings(optimizer="momentum").server_optimizer() == SGD(lr=0.015)


def test_partitions_are_disjoint_and_together_everything() -> None:
    training, test = discover()["digits"].load("")
    parts = [partition_of(node(k, attack="none")) for k in range(10)]
    assert sum(len(part.labels) for part in parts) == len(training.labels) == 1797 - 360
    assert max(len(p.labels) for p in parts) - min(len(p.labels) for p in parts) <= 1
    together = torch.cat([part.inputs for part in parts]).sort(dim=0).values
    assert torch.equal(together, training.inputs.sort(dim=0).values)
    assert len(test.labels) == 360


def test_training_and_test_examples_do_not_overlap() -> None:
    training, test = discover()["digits"].load("")
    training_rows = {tuple(row) for row in training.inputs.tolist()}
    assert not any(tuple(row) in training_rows for row in test.inputs.tolist())


@pytest.mark.parametrize("name", discover()["digits"].models)
def test_a_model_depends_on_its_seed_and_leaves_the_global_generator_alone(name: str) -> None:
    task, before = discover()["digits"], torch.get_rng_state()
    one, same, other = (task.make_model(name, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_only_the_first_nodes_mount_the_configured_attack() -> None:
    assert attack_of(node(3, attack="sign_flip")) == SignFlip()
    assert attack_of(node(4, attack="sign_flip")) is None
    assert attack_of(node(0, attack="label_flip")) == LabelFlip()
    assert attack_of(node(0, attack="none")) is None


def test_a_label_flipping_node_trains_on_flipped_labels() -> None:
    honest, flipped = (
        partition_of(node(0, attack="none")),
        partition_of(node(0, attack="label_flip")),
    )
    assert torch.equal(honest.inputs, flipped.inputs)
    assert torch.equal(flipped.labels, 9 - honest.labels)


def query_of(model: nn.Module, context: Context, seed: int) -> Query:
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    return Query(parameters, buffers, generator, context, {})


@pytest.mark.parametrize("name", discover()["digits"].models)
def test_the_gradient_is_that_of_the_cross_entropy_on_the_drawn_batch(name: str) -> None:
    context = node(5, model=name)
    model = discover()["digits"].make_model(name, DEFAULTS["seed"])
    answer = gradient(query_of(model, context, seed=3))
    examples = partition_of(context)
    batch = torch.randint(len(examples.labels), (32,), generator=torch.Generator().manual_seed(3))
    model.train()
    nn.functional.cross_entropy(model(examples.inputs[batch]), examples.labels[batch]).backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(answer.gradients[key], parameter.grad)
    for key, buffer in model.named_buffers():
        torch.testing.assert_close(answer.buffers[key], buffer)


def test_too_few_nodes_are_refused_with_the_command_to_run() -> None:
    with pytest.raises(ConfigError, match=r"^quorum=10 .* type `flwr run \. --federation-config"):
        check_nodes(settings(), InMemoryGrid(9))


def test_more_byzantine_nodes_than_nodes_are_refused() -> None:
    assert check_nodes(settings(byzantine_nodes=12), InMemoryGrid(12)) == list(range(12))
    with pytest.raises(ConfigError, match=r"^byzantine-nodes=11 .* at most the 10 nodes"):
        check_nodes(settings(byzantine_nodes=11), InMemoryGrid(10))


def test_a_batch_of_one_is_refused_with_a_model_that_normalises_over_it() -> None:
    assert settings(batch_size=1).batch_size == 1
    with pytest.raises(ConfigError, match=r"^batch-size=1 .*>= 2"):
        settings(batch_size=1, model="mlp-bn")


def test_the_byzantine_share_is_that_of_the_byzantine_partitions() -> None:
    statistics = Statistics(replies={10: 6, 11: 3, 12: 1})
    partitions = {10: 5, 11: 0, 12: 1}
    assert byzantine_share(settings(byzantine_nodes=1), statistics, partitions) == 0.3
    assert byzantine_share(settings(attack="none"), statistics, partitions) == 0.0
