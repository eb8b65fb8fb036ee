"""The run-config as one validated object: a wrong value is an error before anything is sent.

`flwr run` checks neither types nor ranges of overrides: ``lr='oops'`` arrives as a string.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from apps.train import tasks
from apps.train.tasks import partitions
from flwr_byzasync import Checkpoints, ConfigError, aggregators, attacks, estimators
from flwr_byzasync._checks import check_byz_fraction, check_choice, check_integer, check_number
from flwr_byzasync.attacks import LabelAttack, Needs, VectorAttack, needs_of
from flwr_byzasync.optimizers import SGD, AnyTimeSGD, Optimizer
from flwr_byzasync.weights import POLICIES, Capped, WeightPolicy, weight_policy

NO_ATTACK = "none"
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Settings:
    """All settings of the reference app; each field is a run-config key, with ``_`` for ``-``.

    Raises
    ------
    ConfigError
        From `of`, with the key, its value, the legal range and a fix.
    """

    dataset: str
    model: str
    partition: str
    data_dir: str
    download: bool
    aggregator: str
    byz_fraction: float
    attack: str
    byzantine_nodes: int
    optimizer: str
    lr: float
    beta: float
    gamma: float
    batch_size: int
    num_server_rounds: int
    updates_per_round: int
    quorum: int
    weights: str
    max_share: float
    max_rate: float
    seed: int
    device: str
    output_dir: str
    checkpoint_dir: str
    checkpoint_every: int
    checkpoint_seconds: float
    resume: bool

    @classmethod
    def of(cls, run_config: Mapping[str, object]) -> "Settings":
        """Check a run-config key by key."""
        keys = {field.name.replace("_", "-"): field.name for field in fields(cls)}
        for key in run_config:
            if key not in keys:
                raise ConfigError("run-config", key, f"one of {', '.join(keys)}", "remove it")
        for key in keys:
            if key not in run_config:
                raise ConfigError("run-config", f"no {key}", "complete", f"set {key} in it")
        checked: dict[str, Any] = {n: _checked(key, run_config[key]) for key, n in keys.items()}
        settings = cls(**checked)
        task = tasks.discover()[settings.dataset]
        fix = f"pass for example model='{next(iter(task.models))}'"
        check_choice("model", settings.model, task.models, fix=fix)
        task.check(settings.data_dir, settings.download)
        if settings.resume and not settings.checkpoint_dir:
            fix = "pass the checkpoint-dir of the run to resume"
            raise ConfigError("resume", True, "false while checkpoint-dir is empty", fix)
        check_batch_size(settings.dataset, settings.model, settings.batch_size, settings.seed)
        aggregators.build(settings.aggregator, settings.byz_fraction)
        estimators.build(settings.optimizer, settings.chosen_beta)
        return settings

    @property
    def under_attack(self) -> bool:
        """Whether any node is Byzantine."""
        return self.attack != NO_ATTACK and self.byzantine_nodes > 0

    def build_attack(self) -> VectorAttack | LabelAttack | None:
        """Return the attack of the Byzantine nodes, or None without one."""
        return attacks.build(self.attack) if self.under_attack else None

    @property
    def chosen_beta(self) -> float | None:
        """β, or None for the optimizer's default."""
        return None if self.beta == -1.0 else self.beta

    @property
    def chosen_device(self) -> str:
        """The device to compute on; ``auto`` is CUDA where available, otherwise the CPU."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def checkpoints(self) -> Checkpoints | None:
        """Return the checkpoint settings, or None without a checkpoint-dir."""
        if not self.checkpoint_dir:
            return None
        return Checkpoints(
            self.checkpoint_dir,
            every_rounds=self.checkpoint_every,
            every_seconds=self.checkpoint_seconds or None,
            resume=self.resume,
        )

    def weight_policy(self) -> WeightPolicy:
        """Return the weight policy, capped where max-share limits one node."""
        policy = weight_policy(self.weights)
        return Capped(policy, self.max_share) if self.max_share < 1 else policy

    def server_optimizer(self) -> Optimizer:
        """Return the server's half of the optimizer: AnyTime for μ², plain SGD for the others."""
        if self.optimizer == "mu2":
            return AnyTimeSGD(lr=self.lr, gamma=self.gamma)
        return SGD(lr=self.lr)


def check_batch_size(dataset: str, model: str, size: int, seed: int) -> None:
    """Raise `ConfigError` if a model with batch norm would get batches of one example."""
    if size > 1:
        return
    network = tasks.discover()[dataset].make_model(model, seed)
    if any(isinstance(module, _BatchNorm) for module in network.modules()):
        legal = "an integer >= 2 with a model that normalises over the batch"
        raise ConfigError("batch-size", size, legal, "pass for example batch-size=32")


def is_omniscient(attack: VectorAttack | LabelAttack | None) -> TypeGuard[VectorAttack]:
    """Whether an attack needs knowledge of other nodes, and so runs in OmniscientGrid."""
    return attack is not None and needs_of(attack) in (Needs.COLLUDERS, Needs.EVERYTHING)


def _checked(key: str, value: object) -> object:
    """Check one value of the run-config."""
    match key:
        case "dataset":
            return check_choice(key, value, tasks.discover(), fix="pass for example 'digits'")
        case "partition":
            return _checked_partition(key, value)
        case "attack":
            if not isinstance(value, str):
                legal = f"an attack such as 'sign_flip', or {NO_ATTACK!r}"
                raise ConfigError(key, value, legal, "write it in quotes")
            if value != NO_ATTACK:
                attacks.build(value)
            return value
        case "optimizer":
            return check_choice(key, value, estimators.ESTIMATORS, fix="pass for example 'mu2'")
        case "device":
            device = check_choice(key, value, DEVICES, fix="pass 'auto'")
            if device == "cuda" and not torch.cuda.is_available():
                legal = "'auto' or 'cpu' on a machine where torch finds no CUDA device"
                raise ConfigError(key, value, legal, "pass 'auto'")
            return device
        case "weights":
            return check_choice(key, value, POLICIES, fix="pass 'counts'")
        case "download" | "resume" if not isinstance(value, bool):
            raise ConfigError(key, value, "true or false", "write it without quotes")
        case "data-dir" | "output-dir" | "checkpoint-dir":
            return _checked_directory(key, value)
        case "model" | "aggregator" if not isinstance(value, str):
            raise ConfigError(key, value, "a name", "write it in quotes")
        case "model" | "aggregator" | "download" | "resume":
            return value
        case _:
            return _checked_number(key, value)


def _checked_number(key: str, value: object) -> float:
    """Check a number; an integer is accepted for a float."""
    match key:
        case "max-share":
            fix = "pass for example max-share=0.2, or 1.0 for no cap"
            return check_number(key, value, low=0, high=1, closed="right", fix=fix)
        case "max-rate":
            fix = "pass for example max-rate=10.0, or 0.0 for no limit"
            return _checked_or_zero(key, value, 1, fix)
        case "checkpoint-seconds":
            fix = "pass for example checkpoint-seconds=600.0, or 0.0 for only by rounds"
            return _checked_or_zero(key, value, 1, fix)
        case "byz-fraction":
            return check_byz_fraction(key, value)
        case "lr":
            fix = "pass for example lr=0.015"
            return check_number(key, value, low=0, closed="neither", fix=fix)
        case "gamma":
            fix = "pass for example gamma=0.1"
            return check_number(key, value, low=0, high=1, closed="right", fix=fix)
        case "beta":
            return _checked_beta(key, value)
        case "byzantine-nodes" | "seed":
            high = 2**63 - 1 if key == "seed" else None
            return check_integer(key, value, low=0, high=high, fix=f"pass for example {key}=1")
        case _:
            return check_integer(key, value, low=1, fix=f"pass for example {key}=10")


def _checked_partition(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(key, value, "a text", partitions.FIX)
    partitions.build(value)
    return value


def _checked_beta(key: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == -1:
        return -1.0
    fix = "pass -1.0 for the optimizer's default"
    return check_number(key, value, low=0, high=1, closed="both", fix=fix)


def _checked_or_zero(key: str, value: object, low: float, fix: str) -> float:
    """Check a number, where 0 turns the setting off."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value == 0:
        return 0.0
    return check_number(key, value, low=low, fix=fix)


def _checked_directory(key: str, value: object) -> str:
    if not isinstance(value, str) or (value and not Path(value).is_absolute()):
        # A relative path would start wherever the SuperLink was started.
        fix = "write the whole path, from the root"
        raise ConfigError(key, value, "empty or an absolute path", fix)
    if key == "data-dir" and value and not Path(value).is_dir():
        raise ConfigError(key, value, "a directory that exists", "create it or correct the path")
    return value
