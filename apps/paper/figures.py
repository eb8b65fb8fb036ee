"""The cells of each figure, and their selection by ``--only``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from apps.paper.cells import Cell
from flwr_byzasync import ConfigError
from flwr_byzasync._checks import check_choice


def settings_of(dataset: str) -> dict[str, Any]:
    """Return the settings that depend on the data set: the model and the batches of one epoch.

    Digits are few and need more than an epoch: they get 1,000 replies.
    """
    if dataset == "digits":
        return {"model": "mlp", "replies": 1000, "evaluate_every": 100}
    if dataset == "cifar10":
        return {"model": "cnn", "replies": 3125, "evaluate_every": 125}
    return {"model": "cnn", "replies": 3750, "evaluate_every": 250}


@dataclass(frozen=True)
class Plan:
    """What a figure varies and what it fixes.

    Parameters
    ----------
    shows : str
        Its subject.
    dataset : str
        The paper's, unless overridden.
    rules, attacks, optimizers : tuple of str
        Each combination is one cell per seed.
    fixed : mapping
        Other fields of `Cell`.
    """

    shows: str
    dataset: str
    rules: tuple[str, ...]
    attacks: tuple[str, ...]
    optimizers: tuple[str, ...]
    fixed: Mapping[str, Any]


MANY = MappingProxyType({"nodes": 17, "byzantine": 8, "within": "id2"})
FEW = MappingProxyType({"nodes": 9, "byzantine": 4, "within": "id"})
ATTACKS = ("label_flip", "sign_flip", "little", "empire")
OPTIMIZERS = ("mu2", "momentum", "sgd")
RUIN = ("sign_flip(scale=4)", "empire(epsilon=4)", "little(z=10)", "gaussian", "huge_norm")
"""Attacks that ruin the mean; those of the paper target robust rules and only slow a mean down."""

FIGURES: Mapping[str, Plan] = MappingProxyType(
    {
        "fig2": Plan(
            "weighted against unweighted rules, and the mean as a control",
            "mnist",
            ("cwmed", "cwmed-unweighted", "rfa", "rfa-unweighted", "mean"),
            ("label_flip", "sign_flip"),
            ("mu2",),
            MANY,
        ),
        "fig3": Plan(
            "CTMA on top of other rules, and the mean as a control",
            "mnist",
            ("cwmed", "ctma(cwmed)", "rfa", "ctma(rfa)", "mean"),
            ("sign_flip", "little", "empire"),
            ("mu2",),
            MANY,
        ),
        "fig4": Plan(
            "three optimizers, on CIFAR-10", "cifar10", ("ctma(cwmed)",), ATTACKS, OPTIMIZERS, FEW
        ),
        "appendix": Plan(
            "three optimizers, on MNIST", "mnist", ("ctma(cwmed)",), ATTACKS, OPTIMIZERS, FEW
        ),
        "control": Plan(
            "attacks that ruin the mean, which is not in the paper",
            "mnist",
            ("cwmed", "ctma(cwmed)", "rfa", "mean"),
            RUIN,
            ("mu2",),
            MANY,
        ),
    }
)


def fraction_of(attack: str) -> float:
    """Return the paper's λ for an attack."""
    return 0.3 if attack.startswith("label_flip") else 0.4


def cells_of(
    figure: str, seeds: Sequence[int], dataset: str | None = None, **common: Any
) -> list[Cell]:
    """Return the cells of a figure, all seeds of a setting together.

    Parameters
    ----------
    figure : str
        A key of `FIGURES`.
    seeds : sequence of int
        One run each.
    dataset : str, optional
        Overrides the figure's own.
    common
        More fields of `Cell`, shared by all cells.

    Raises
    ------
    ConfigError
        If the figure is unknown or a setting is out of range.
    """
    check_choice("figure", figure, FIGURES, fix="write for example fig2")
    plan = FIGURES[figure]
    dataset = dataset or plan.dataset
    fixed = {**plan.fixed, **settings_of(dataset), **common}
    return [
        Cell(
            figure=figure,
            dataset=dataset,
            rule=rule,
            attack=attack,
            optimizer=optimizer,
            seed=seed,
            **{"byz_fraction": fraction_of(attack), **fixed},
        )
        for attack in plan.attacks
        for rule in plan.rules
        for optimizer in plan.optimizers
        for seed in dict.fromkeys(seeds)
    ]


def filtered(cells: Iterable[Cell], only: Sequence[str]) -> list[Cell]:
    """Return the cells that match every KEY=VALUE of `only`; several values of a key are "or".

    Raises
    ------
    ConfigError
        If no cell has a key or value, with the legal ones.
    """
    kept = list(cells)
    values_by_key: dict[str, list[str]] = {}
    for pair in only:
        key, _, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        names = [field.name for field in fields(Cell)]
        if key not in names or not value:
            legal = f"KEY=VALUE with a key among {', '.join(names)}"
            raise ConfigError("--only", pair, legal, "write for example rule=cwmed")
        values_by_key.setdefault(key, []).append(value.strip())
    for key, values in values_by_key.items():
        known = list(dict.fromkeys(str(getattr(cell, key)) for cell in kept))
        for value in values:
            if value not in known:
                legal = f"one of {', '.join(known)}"
                raise ConfigError(f"--only {key}", value, legal, "see `list` for the cells")
        kept = [cell for cell in kept if str(getattr(cell, key)) in values]
    return kept
