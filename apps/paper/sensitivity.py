"""The sensitivity study: every rule under every attack, on digits, 9 nodes, 4 Byzantine."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from types import MappingProxyType

from apps.paper import heatmap, sensitivity_report
from apps.paper.cells import NO_ATTACK, Cell
from apps.paper.jobs import Job, run_all
from apps.paper.results import Entry, Results, group_of
from flwr_byzasync import ConfigError, aggregators, attacks
from flwr_byzasync._checks import check_integer

FIGURE = "sensitivity"
BYZANTINE_SHARE = 0.4
"""λ of the paper, with faithful arrivals."""
RULE_FRACTION = 0.45
"""λ passed to the rules. At the first step each of the 9 nodes has sent one reply, so 4/9 of the
weight is Byzantine, the maximum over all steps: with a smaller λ it alone may ruin a rule."""
REPLIES = 400
PARTITIONS = ("iid", "dirichlet(0.5)")
BASE = "cwmed"
COMPOSED = (
    f"{BASE}-unweighted",
    "ctma(gm)",
    "nnm(gm)",
    "nnm(krum)",
    "nnm(trimmed_mean)",
    f"ctma(nnm({BASE}))",
)
"""In addition to each rule by itself and each meta-rule over the median."""
TRUSTING = MappingProxyType({"monna": "monna(pivot=8)"})
"""Rules that need a trusted node; rows are in order of partition-id, Byzantine nodes first."""
STRONGER = (
    "sign_flip(scale=4)",
    "empire(epsilon=4)",
    "empire(epsilon=optimised)",
    "little(z=optimised)",
)
"""In addition to each attack with its defaults."""


def all_rules() -> tuple[str, ...]:
    """Return every known rule, meta-rules over the median, and `COMPOSED`."""
    rules = aggregators.discover()
    meta = {name for name, rule in rules.items() if "base" in _settings(rule)}
    named = [f"{name}({BASE})" if name in meta else TRUSTING.get(name, name) for name in rules]
    named.sort(key=lambda text: (text != "mean", text.split("(")[0] in meta))
    return tuple(text for text in (*named, *COMPOSED) if _is_legal(text))


def all_attacks() -> tuple[str, ...]:
    """Return every attack that has an effect here, and `STRONGER`."""
    return tuple(attack for attack in (*attacks.discover(), *STRONGER) if _has_effect(attack))


def accepted_fraction(rule: str) -> float:
    """Return λ for a rule: `RULE_FRACTION`, or the largest in hundredths that it accepts.

    Raises
    ------
    ConfigError
        If it accepts none: its name is wrong.
    """
    refused: ConfigError | None = None
    for hundredths in range(round(100 * RULE_FRACTION), -1, -1):
        try:
            aggregators.build(rule, hundredths / 100)
        except ConfigError as error:
            refused = refused or error
        else:
            return hundredths / 100
    assert refused is not None
    raise refused


def cell_of(rule: str, attack: str, partition: str, seed: int, replies: int) -> Cell:
    """Return one cell of the study, evaluated once at its end."""
    return Cell(
        figure=FIGURE,
        dataset="digits",
        rule=rule,
        attack=attack,
        optimizer="mu2",
        byz_fraction=BYZANTINE_SHARE,
        seed=seed,
        nodes=9,
        byzantine=4,
        within="id",
        arrivals="faithful",
        model="mlp",
        replies=replies,
        evaluate_every=replies,
        lr=0.015,
        partition=partition,
        told=accepted_fraction(rule),
    )


def cells_of(
    rules: Sequence[str],
    attacks: Sequence[str],
    partitions: Sequence[str] = PARTITIONS,
    seeds: Sequence[int] = (1,),
    replies: int = REPLIES,
) -> list[Cell]:
    """Return the cells of a study, including those without an attack.

    Raises
    ------
    ConfigError
        If a name or a number is not legal.
    """
    return [
        cell_of(rule, attack, partition, seed, replies)
        for partition in dict.fromkeys(partitions)
        for attack in dict.fromkeys((NO_ATTACK, *attacks))
        for rule in dict.fromkeys(rules)
        for seed in dict.fromkeys(seeds)
    ]


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the study."""
    command.add_argument("--rules", nargs="+", metavar="RULE", help="default: all")
    command.add_argument("--attacks", nargs="+", metavar="ATTACK", help="default: all")
    command.add_argument("--partitions", nargs="+", default=list(PARTITIONS), metavar="PARTITION")
    command.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="SEED")
    command.add_argument("--replies", type=int, default=REPLIES, help=f"default {REPLIES}")
    command.add_argument("--show", action="store_true", help="run nothing; print tables of --out")


def main(options: argparse.Namespace) -> int:
    """Run the cells that are missing in ``--out``, and make tables and heat maps of all.

    Raises
    ------
    ConfigError
        If an option is not legal.
    """
    cells = cells_of(
        options.rules or all_rules(),
        options.attacks or all_attacks(),
        options.partitions,
        options.seeds,
        options.replies,
    )
    check_integer("--jobs", options.jobs, low=1, fix="pass for example 2")
    results = Results(options.out)
    complete = True
    if not options.show:
        todo = [Job(cell) for cell in results.unfinished(cells)]
        complete = run_all(todo, results, options.jobs, finished=len(cells) - len(todo))
    rows = _rows(results, cells)
    grids = sensitivity_report.grids_of(rows, cells)
    if not grids:
        print("No cell is finished.", file=sys.stderr)
        return 1
    sensitivity_report.write(rows, options.out / f"{FIGURE}.json")
    text = sensitivity_report.markdown(grids)
    (options.out / f"{FIGURE}.md").write_text(text, encoding="utf-8")
    for grid in grids:
        heatmap.draw(grid, options.out / heatmap.name_of(grid))
    print(text)
    return 0 if complete else 1


def _rows(results: Results, cells: Sequence[Cell]) -> list[Entry]:
    """Return the summary's rows of these cells, in their order."""
    rows = {group_of(row): row for row in results.summarise()}
    groups = dict.fromkeys(group_of(asdict(cell)) for cell in cells)
    return [rows[group] for group in groups if group in rows]


def _settings(rule: type) -> set[str]:
    return {field.name for field in fields(rule)}


def _is_legal(rule: str) -> bool:
    """Whether a rule exists and needs no other settings."""
    try:
        accepted_fraction(rule)
    except ConfigError:
        return False
    return True


def _has_effect(attack: str) -> bool:
    """Whether a cell accepts an attack."""
    try:
        cell_of("mean", attack, PARTITIONS[0], seed=1, replies=REPLIES)
    except ConfigError:
        return False
    return True
