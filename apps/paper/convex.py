"""The convex check: excess loss against server steps, for the claims of the paper's analysis.

Each optimizer uses the best step size of one grid, tuned for each problem, attack and horizon
under one rule with a separate seed. `apps.paper.convex_loop` is one run; `apps.paper.convex_report`
makes the tables and figures.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import astuple, fields, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import torch

from apps.paper.convex_loop import (
    ARMS,
    ATTACKS,
    ConvexCell,
    Trajectory,
    best_steps,
    checkpoints,
    run,
)
from apps.paper.convex_report import report
from apps.paper.problems import PROBLEMS
from flwr_byzasync._checks import check_choice, check_integer

GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Step sizes c tried for each optimizer."""
TUNING_RULE, TUNING_SEED = "cwmed", 10**6

CHOICES: dict[str, tuple[str, ...]] = {
    "problem": tuple(PROBLEMS),
    "attack": tuple(ATTACKS),
    "optimizer": tuple(ARMS),
    "rule": ("mean", "cwmed", "gm", "rfa", "ctma(cwmed)", "ctma(gm)"),
}
COLUMNS = (*(field.name for field in fields(ConvexCell)), "t", "excess")


def main(
    out: Path,
    seeds: Sequence[int] = (1, 2, 3),
    replies: int = 4096,
    jobs: int = 1,
    only: Sequence[str] = (),
) -> None:
    """Run what is missing in `out`, and write tables and figures.

    Parameters
    ----------
    out : Path
        Folder, created if missing, for ``convex_steps.csv`` (the runs of the grid),
        ``convex.csv`` (the runs), ``convex_summary.csv``, ``convex_summary.md`` and one PNG per
        problem and attack. A finished run is not repeated; its settings identify it, whatever
        the version of the code.
    seeds : sequence of int
        At least one, each below 10⁶.
    replies : int
        The longest horizon T in server steps, >= 64; T/4 and T/16 run as well.
    jobs : int
        Processes.
    only : sequence of str
        ``KEY=VALUE`` with a key among problem, attack, optimizer and rule; several values of a
        key are "or", and a key without any keeps all of its values.

    Raises
    ------
    ConfigError
        If a value is not legal.
    """
    chosen = _selected(only)
    for seed in seeds:
        check_integer("seeds", seed, low=0, high=TUNING_SEED - 1, fix="pass for example 1 2 3")
    check_integer("replies", replies, low=64, fix="pass for example replies=4096")
    check_integer("jobs", jobs, low=1, fix="pass for example jobs=1")
    horizons = (replies // 16, replies // 4, replies)
    out.mkdir(parents=True, exist_ok=True)
    groups = list(product(chosen["problem"], chosen["attack"], chosen["optimizer"], horizons))
    grid = [
        ConvexCell(p, a, o, TUNING_RULE, TUNING_SEED, horizon, step)
        for (p, a, o, horizon), step in product(groups, GRID)
    ]
    tried = run_missing(out / "convex_steps.csv", grid, jobs)
    cells = [
        replace(cell, rule=rule, seed=seed)
        for cell, rule, seed in product(best_steps(tried), chosen["rule"], seeds)
    ]
    report(out, run_missing(out / "convex.csv", cells, jobs), tried)


def run_missing(path: Path, cells: Sequence[ConvexCell], jobs: int) -> dict[ConvexCell, Trajectory]:
    """Return the results of `cells`; those missing in `path` are run and appended to it."""
    results = read(path)
    missing = [cell for cell in dict.fromkeys(cells) if cell not in results]
    write(path, results)  # drops incomplete runs
    for cell, trajectory in _finished(missing, jobs):
        results[cell] = trajectory
        write(path, {cell: trajectory}, mode="a")
    return {cell: results[cell] for cell in cells}


def _finished(cells: Sequence[ConvexCell], jobs: int) -> Iterator[tuple[ConvexCell, Trajectory]]:
    """Yield each cell with its result, as they finish."""
    if jobs == 1:
        yield from ((cell, run(cell)) for cell in cells)
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (1,)) as pool:
        running = {pool.submit(run, cell): cell for cell in cells}
        yield from ((running[future], future.result()) for future in as_completed(running))


def read(path: Path) -> dict[ConvexCell, Trajectory]:
    """Return the finished runs of a file, none if it does not exist."""
    points_of: dict[ConvexCell, Trajectory] = {}
    if not path.exists():
        return points_of
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    for name, attack, arm, rule, seed, horizon, step, t, excess in csv.reader(whole[1:]):
        cell = ConvexCell(name, attack, arm, rule, int(seed), int(horizon), float(step))
        points_of.setdefault(cell, []).append((int(t), float(excess)))
    expected = {cell.horizon: checkpoints(cell.horizon) for cell in points_of}
    return {
        cell: points
        for cell, points in points_of.items()
        if [t for t, _ in points] == expected[cell.horizon]
    }


def write(
    path: Path, results: Mapping[ConvexCell, Trajectory], mode: Literal["w", "a"] = "w"
) -> None:
    """Write runs, one row per checkpoint; mode "w" replaces the file, with its header."""
    target = path if mode == "a" else path.with_suffix(".new")
    with target.open(mode, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if mode == "w":
            writer.writerow(COLUMNS)
        for cell, points in results.items():
            writer.writerows((*astuple(cell), t, f"{excess:.6g}") for t, excess in points)
    target.replace(path)


def _selected(only: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each setting: those in `only`, or all."""
    named: dict[str, list[str]] = {}
    for pair in only:
        key, _, value = pair.partition("=")
        fix = "write for example attack=little"
        check_choice("only", key, CHOICES, fix=fix)
        named.setdefault(key, []).append(check_choice(key, value, CHOICES[key], fix=fix))
    return {key: named.get(key, list(values)) for key, values in CHOICES.items()}
