"""The sensitivity study: every rule under every attack, digits, 9 nodes of which 4 lie."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from types import MappingProxyType

from apps.paper import heatmap, sensitivity_report
from apps.paper.cells import NO_ATTACK, Cell
from apps.paper.jobs import Job, run_all
from apps.paper.results import Line, Results, group_of
from flwr_byzasync import ConfigError, aggregators, attacks
from flwr_byzasync._checks import check_integer

FIGURE = "sensitivity"
LIARS_SHARE = 0.4
"""λ, the paper's, in faithful arrivals."""
TOLD = 0.45
"""What rules are told. At the first step each of the 9 nodes has sent one reply, so that 4/9 of
the weight is the liars': no step has a larger share, and a rule that were told less might be
ruined by that first step alone, whatever it does later."""
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
"""Beside every rule alone and every meta-rule over the median."""
WRITTEN = MappingProxyType({"monna": "monna(pivot=8)"})
"""Rules that need a node which is trusted; rows are in order of partition-ids, liars first."""
STRONGER = (
    "sign_flip(scale=4)",
    "empire(epsilon=4)",
    "empire(epsilon=optimised)",
    "little(z=optimised)",
)
"""Beside every attack at its own defaults."""


def all_rules() -> tuple[str, ...]:
    """Return every rule that is found, those with a base over the median, and `COMPOSED`."""
    rules = aggregators.discover()
    over = {name for name, rule in rules.items() if "base" in _settings(rule)}
    named = [f"{name}({BASE})" if name in over else WRITTEN.get(name, name) for name in rules]
    named.sort(key=lambda text: (text != "mean", text.split("(")[0] in over))
    return tuple(text for text in (*named, *COMPOSED) if _legal(text))


def all_attacks() -> tuple[str, ...]:
    """Return every attack that can do something here, and `STRONGER`."""
    return tuple(attack for attack in (*attacks.discover(), *STRONGER) if _sensible(attack))


def told(rule: str) -> float:
    """Return λ as a rule is told it: `TOLD`, or in hundredths the largest that it takes.

    Raises
    ------
    ConfigError
        If it takes none: its name is wrong.
    """
    refused: ConfigError | None = None
    for hundredths in range(round(100 * TOLD), -1, -1):
        try:
            aggregators.build(rule, hundredths / 100)
        except ConfigError as error:
            refused = refused or error
        else:
            return hundredths / 100
    assert refused is not None
    raise refused


def cell_of(rule: str, attack: str, partition: str, seed: int, replies: int) -> Cell:
    """Return one cell of the study; evaluated once, at its end."""
    return Cell(
        figure=FIGURE,
        dataset="digits",
        rule=rule,
        attack=attack,
        optimizer="mu2",
        byz_fraction=LIARS_SHARE,
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
        told=told(rule),
    )


def cells_of(
    rules: Sequence[str],
    attacks: Sequence[str],
    partitions: Sequence[str] = PARTITIONS,
    seeds: Sequence[int] = (1,),
    replies: int = REPLIES,
) -> list[Cell]:
    """Return the cells of a study, and those without an attack.

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
    """Add what narrows or widens the study."""
    command.add_argument("--rules", nargs="+", metavar="RULE", help="default: all")
    command.add_argument("--attacks", nargs="+", metavar="ATTACK", help="default: all")
    command.add_argument("--partitions", nargs="+", default=list(PARTITIONS), metavar="PARTITION")
    command.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="SEED")
    command.add_argument("--replies", type=int, default=REPLIES, help=f"default {REPLIES}")
    command.add_argument("--show", action="store_true", help="run nothing; print tables of --out")


def main(options: argparse.Namespace) -> int:
    """Run what is missing in ``--out``, and make tables and heat maps of all that is there.

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


def _rows(results: Results, cells: Sequence[Cell]) -> list[Line]:
    """Return the rows of the summary that belong to cells, in the order of the cells."""
    rows = {group_of(row): row for row in results.summarise()}
    groups = dict.fromkeys(group_of(asdict(cell)) for cell in cells)
    return [rows[group] for group in groups if group in rows]


def _settings(rule: type) -> set[str]:
    return {field.name for field in fields(rule)}


def _legal(rule: str) -> bool:
    """Whether a rule is there and needs no other settings."""
    try:
        told(rule)
    except ConfigError:
        return False
    return True


def _sensible(attack: str) -> bool:
    """Whether a cell takes an attack."""
    try:
        cell_of("mean", attack, PARTITIONS[0], seed=1, replies=REPLIES)
    except ConfigError:
        return False
    return True
