"""Tables of the sensitivity study, as Markdown and JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from apps.paper.cells import NO_ATTACK, Cell
from apps.paper.results import Entry
from flwr_byzasync import aggregators
from flwr_byzasync.aggregators.rule import bound_of

MEAN = "mean"


class Worst(NamedTuple):
    """The attack under which a rule is least accurate."""

    accuracy: float
    attack: str


@dataclass(frozen=True)
class Grid:
    """Accuracies of one partition of the data.

    Parameters
    ----------
    setting : dict
        The settings that all cells share; a row of ``summary.csv``.
    fractions : mapping of str to float
        Rule -> the λ passed to it.
    attacks : tuple of str
        Columns.
    accuracy : mapping of (rule, attack) to float
        Finished cells, mean over seeds.
    total : int
        Number of cells when all are finished.
    """

    setting: Entry
    fractions: Mapping[str, float]
    attacks: tuple[str, ...]
    accuracy: Mapping[tuple[str, str], float]
    total: int

    @property
    def partition(self) -> str:
        """Partition of the examples among the nodes."""
        return str(self.setting["partition"])

    @property
    def rules(self) -> tuple[str, ...]:
        """Rules, the best worst case first."""

        def key(rule: str) -> tuple[float, float]:
            worst = self.worst(rule)
            return (1.0 if worst is None else -worst.accuracy, -(self.clean(rule) or 0.0))

        return tuple(sorted(self.fractions, key=key))

    def clean(self, rule: str) -> float | None:
        """Return a rule's accuracy without an attack."""
        return self.accuracy.get((rule, NO_ATTACK))

    def worst(self, rule: str) -> Worst | None:
        """Return a rule's lowest accuracy over all attacks."""
        candidates = [
            Worst(self.accuracy[rule, attack], attack)
            for attack in self.attacks
            if (rule, attack) in self.accuracy
        ]
        return min(candidates, default=None)

    def mark(self, rule: str) -> str:
        """Return the mark of a rule that does not accept the λ of the others."""
        fraction = self.fractions[rule]
        return f", told {fraction:g}" if fraction < self.covered else ""

    @property
    def covered(self) -> float:
        """The λ passed to most rules: an upper bound on the Byzantine share at every step."""
        return max(self.fractions.values())

    def constant(self, rule: str) -> float | None:
        """Return c_λ of a rule at `covered`, or None without a guarantee."""
        return bound_of(aggregators.build(rule, self.fractions[rule]), self.covered)


def grids_of(rows: Sequence[Entry], cells: Sequence[Cell]) -> list[Grid]:
    """Return one grid per partition of the summary's rows, in their order."""
    grids = []
    for partition in dict.fromkeys(row["partition"] for row in rows):
        selected = [row for row in rows if row["partition"] == partition]
        attacks = dict.fromkeys(row["attack"] for row in selected)
        grids.append(
            Grid(
                setting=selected[0],
                fractions={row["rule"]: row["told"] for row in selected},
                attacks=tuple(attack for attack in attacks if attack != NO_ATTACK),
                accuracy={(row["rule"], row["attack"]): row["accuracy"] for row in selected},
                total=len({(c.rule, c.attack) for c in cells if c.partition == partition}),
            )
        )
    return grids


def markdown(grids: Sequence[Grid]) -> str:
    """Return a table for each grid."""
    return "\n\n".join(_table(grid) for grid in grids)


def write(rows: Sequence[Entry], path: Path) -> None:
    """Write all cells as JSON: settings, seeds, accuracy (mean), deviation, seconds."""
    path.write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")


def caption(grid: Grid) -> str:
    """Return the settings of a grid as one line."""
    one = grid.setting
    return (
        f"{one['dataset']}, {grid.partition}, {one['nodes']} nodes, {one['byzantine']} of them "
        f"liars with {one['byz_fraction']:g} of the weight, {one['replies']} replies, "
        f"{one['seeds']} seed{'s' if one['seeds'] > 1 else ''}"
    )


def _table(grid: Grid) -> str:
    lines = [
        f"{caption(grid)}; {len(grid.accuracy)} of {grid.total} cells are finished.",
        "",
        f"| rule | c at {grid.covered:g} | clean | worst | under | cost |",
        "|---|---|---|---|---|---|",
    ]
    reference = grid.clean(MEAN)
    for rule in grid.rules:
        clean, worst = grid.clean(rule), grid.worst(rule)
        cost = None if clean is None or reference is None else reference - clean
        named = "" if worst is None else f"`{worst.attack}`"
        lowest = None if worst is None else worst.accuracy
        constant = grid.constant(rule)
        columns = (
            f"`{rule}`{grid.mark(rule)}",
            "none" if constant is None else f"{constant:.3g}",
            _number(clean),
            _number(lowest),
            named,
            _number(cost),
        )
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
