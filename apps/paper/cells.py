"""One cell of a figure: every setting of one run, and which cells make up which figure."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from apps.train import tasks
from flwr_byzasync import aggregators, attacks, estimators
from flwr_byzasync.arrivals import POWERS
from flwr_byzasync.errors import (
    ConfigError,
    check_byz_fraction,
    check_choice,
    check_integer,
    check_number,
)

NO_ATTACK = "none"
ARRIVALS = {"paper": "code", "faithful": "faithful"}
"""``--arrivals`` -> whose turn it is, in the words of `PaperArrivals`."""


@dataclass(frozen=True)
class Cell:
    """One run. The defaults are the paper's settings of figure 2.

    Parameters
    ----------
    figure : str
        Which figure it belongs to.
    dataset, model : str
        A task of ``apps/train/tasks`` and one of its models.
    rule, attack, optimizer : str
        As run-configs write them: ``"ctma(cwmed)"``, ``"sign_flip"``, ``"mu2"``.
    byz_fraction : float
        λ: the Byzantine share of arrivals, and what CTMA is told.
    nodes, byzantine : int
        Nodes, and how many of them lie.
    within : {"id2", "id", "uniform"}
        How often a node of a group comes.
    arrivals : {"paper", "faithful"}
        "paper": as the published code; "faithful": the true share λ.
    seed : int
        Of arrivals, batches and initial values: for a seed all rules see the same arrivals.
    batch_size, replies, evaluate_every : int
        Examples of a gradient; accepted replies in all; between two evaluations.
    lr, beta, gamma : float
        η; β, or -1 for the optimizer's own (0.25 for μ², 0.9 for momentum); γ.

    Raises
    ------
    ConfigError
        If a setting is out of range.
    """

    figure: str
    dataset: str
    rule: str
    attack: str
    optimizer: str
    byz_fraction: float
    seed: int
    nodes: int = 17
    byzantine: int = 8
    within: str = "id2"
    arrivals: str = "paper"
    model: str = "cnn"
    batch_size: int = 16
    replies: int = 3750
    evaluate_every: int = 250
    lr: float = 0.01
    beta: float = -1.0
    gamma: float = 0.1

    def __post_init__(self) -> None:
        known = tasks.discover()
        check_choice("dataset", self.dataset, known, fix="pass for example 'fashion-mnist'")
        models = known[self.dataset].models
        check_choice("model", self.model, models, fix=f"pass for example {next(iter(models))!r}")
        check_byz_fraction("byz_fraction", self.byz_fraction)
        aggregators.build(self.rule, self.byz_fraction)
        if self.attack != NO_ATTACK:
            attacks.build(self.attack)
        estimators.build(self.optimizer, self.chosen_beta)
        for name in ("nodes", "batch_size", "replies", "evaluate_every"):
            check_integer(name, getattr(self, name), low=1, fix=f"pass for example {name}=16")
        if self.replies % self.evaluate_every:
            legal, fix = "a divisor of replies", "pass for example replies=3750 evaluate_every=250"
            raise ConfigError("evaluate_every", self.evaluate_every, legal, fix)
        check_integer("seed", self.seed, low=0, fix="pass for example 1")
        fix = "pass fewer, or more nodes"
        check_integer("byzantine", self.byzantine, low=0, high=self.nodes, fix=fix)
        if self.byzantine == self.nodes:
            raise ConfigError("byzantine", self.byzantine, "fewer than nodes", fix)
        check_choice("within", self.within, POWERS, fix="pass for example 'id2'")
        check_choice("arrivals", self.arrivals, ARRIVALS, fix="pass 'paper' or 'faithful'")
        check_number("lr", self.lr, low=0, closed="neither", fix="pass for example lr=0.01")
        fix = "pass for example gamma=0.1"
        check_number("gamma", self.gamma, low=0, high=1, closed="right", fix=fix)

    @property
    def chosen_beta(self) -> float | None:
        """β, or None for the optimizer's own."""
        return None if self.beta == -1.0 else self.beta

    @property
    def name(self) -> str:
        """Short name: all settings, hashed, so that a finished cell is known again."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def settings_of(dataset: str) -> dict[str, object]:
    """Return what differs by data set: the model and how many batches make one epoch.

    Digits are few: two epochs would teach a network nothing, so they get 1,000 replies.
    """
    if dataset == "digits":
        return {"model": "mlp", "replies": 1000, "evaluate_every": 100}
    if dataset == "cifar10":
        return {"model": "cnn", "replies": 3125, "evaluate_every": 125}
    return {"model": "cnn", "replies": 3750, "evaluate_every": 250}


FIGURES: Mapping[str, Mapping[str, object]] = {
    # name: data set, what varies, what is fixed. λ is 0.3 for label flip and 0.4 otherwise.
    "fig2": {
        "dataset": "mnist",
        "rules": ("cwmed", "cwmed-unweighted", "rfa", "rfa-unweighted", "mean"),
        "attacks": ("label_flip", "sign_flip"),
        "optimizers": ("mu2",),
        "fixed": {"nodes": 17, "byzantine": 8, "within": "id2"},
    },
    "fig3": {
        "dataset": "mnist",
        "rules": ("cwmed", "ctma(cwmed)", "rfa", "ctma(rfa)", "mean"),
        "attacks": ("sign_flip", "little", "empire"),
        "optimizers": ("mu2",),
        "fixed": {"nodes": 17, "byzantine": 8, "within": "id2"},
    },
    "fig4": {
        "dataset": "cifar10",
        "rules": ("ctma(cwmed)", "mean"),
        "attacks": ("label_flip", "sign_flip", "little", "empire"),
        "optimizers": ("mu2", "momentum", "sgd"),
        "fixed": {"nodes": 9, "byzantine": 4, "within": "id"},
    },
    "appendix": {
        "dataset": "mnist",
        "rules": ("ctma(cwmed)", "mean"),
        "attacks": ("label_flip", "sign_flip", "little", "empire"),
        "optimizers": ("mu2", "momentum", "sgd"),
        "fixed": {"nodes": 9, "byzantine": 4, "within": "id"},
    },
}


def fraction_of(attack: str) -> float:
    """Return the paper's λ for an attack."""
    return 0.3 if attack.startswith("label_flip") else 0.4


def cells_of(
    figure: str, seeds: Sequence[int], dataset: str | None = None, **common: object
) -> list[Cell]:
    """Return the cells of a figure, all seeds of a setting together.

    Parameters
    ----------
    figure : str
        A key of `FIGURES`.
    seeds : sequence of int
        One run each.
    dataset : str, optional
        Instead of the figure's own.
    common
        More fields of `Cell`, the same for all cells.

    Raises
    ------
    ConfigError
        If the figure is unknown or a setting is out of range.
    """
    check_choice("figure", figure, FIGURES, fix="write for example fig2")
    plan = FIGURES[figure]
    dataset = str(plan["dataset"]) if dataset is None else dataset
    fixed = {**plan["fixed"], **settings_of(dataset), **common}  # type: ignore[dict-item]
    return [
        Cell(
            figure=figure,
            dataset=dataset,
            rule=rule,
            attack=attack,
            optimizer=optimizer,
            seed=seed,
            **{"byz_fraction": fraction_of(attack), **fixed},  # type: ignore[arg-type]
        )
        for attack in plan["attacks"]  # type: ignore[attr-defined]
        for rule in plan["rules"]  # type: ignore[attr-defined]
        for optimizer in plan["optimizers"]  # type: ignore[attr-defined]
        for seed in seeds
    ]


def narrowed(cells: Iterable[Cell], only: Sequence[str]) -> list[Cell]:
    """Keep the cells that every KEY=VALUE of `only` names; several values of a key are "or".

    Raises
    ------
    ConfigError
        If a key or a value is none of the cells', with those that are.
    """
    kept = list(cells)
    wanted: dict[str, list[str]] = {}
    for pair in only:
        key, _, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        names = [field.name for field in fields(Cell)]
        if key not in names or not value:
            legal = f"KEY=VALUE with a key among {', '.join(names)}"
            raise ConfigError("--only", pair, legal, "write for example rule=cwmed")
        wanted.setdefault(key, []).append(value.strip())
    for key, values in wanted.items():
        known = list(dict.fromkeys(str(getattr(cell, key)) for cell in kept))
        for value in values:
            if value not in known:
                legal = f"one of {', '.join(known)}"
                raise ConfigError(f"--only {key}", value, legal, "see `list` for the cells")
        kept = [cell for cell in kept if str(getattr(cell, key)) in values]
    return kept
