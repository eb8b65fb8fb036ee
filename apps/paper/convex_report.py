"""What the convex check found: fitted slopes, final losses, the claims they bear on."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from apps.paper.convex_figure import NAMES, TINY, figure
from apps.paper.convex_loop import Cell, Trajectory, best_steps, score

Key = tuple[str, str, str, str]
"""Problem, attack, rule, optimizer."""


def slope(points: Trajectory, decades: float = 1.0) -> float:
    """Return p of the least-squares fit ``excess ∝ t^p`` over the last decades of t.

    Examples
    --------
    >>> round(slope([(t, 5.0 / t) for t in (1, 10, 20, 50, 100)]), 6)
    -1.0
    """
    first = points[-1][0] / 10**decades
    logs = np.log([(t, max(excess, TINY)) for t, excess in points if t >= first])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


@dataclass(frozen=True)
class Line:
    """One optimizer with one rule on one problem under one attack, over all seeds.

    Parameters
    ----------
    step : float
        c at the longest horizon.
    final : tuple of float
        Mean and deviation over seeds of the excess, averaged over the last octave of t.
    slope_t : tuple of float
        Of the exponent over the last decade of t in the longest run: 0 is a floor.
    slope_horizon : tuple of float
        Of the exponent over the horizons, the step size chosen anew for each: what the theory's
        rate speaks of.
    """

    step: float
    final: tuple[float, float]
    slope_t: tuple[float, float]
    slope_horizon: tuple[float, float]


def summarise(results: Mapping[Cell, Trajectory]) -> dict[Key, Line]:
    """Return a line for each problem, attack, rule and optimizer."""
    runs: dict[Key, dict[int, dict[int, Trajectory]]] = defaultdict(lambda: defaultdict(dict))
    steps: dict[Key, float] = {}
    longest = max(cell.horizon for cell in results)
    for cell, points in results.items():
        key = (cell.problem, cell.attack, cell.rule, cell.optimizer)
        runs[key][cell.seed][cell.horizon] = points
        if cell.horizon == longest:
            steps[key] = cell.step
    return {
        key: Line(
            steps[key],
            _spread([score(run[longest]) for run in seeds.values()]),
            _spread([slope(run[longest]) for run in seeds.values()]),
            _spread([_over_horizons(run) for run in seeds.values()]),
        )
        for key, seeds in runs.items()
    }


def _over_horizons(run: Mapping[int, Trajectory]) -> float:
    return slope([(horizon, score(run[horizon])) for horizon in sorted(run)], decades=9)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class Steps:
    """What the grid says about one optimizer's need of tuning, under its one rule and seed.

    Parameters
    ----------
    best : tuple of float
        c chosen for each horizon, shortest first.
    final, kept : float
        The score at the longest horizon, with its own c and with the c of the shortest.
    kept_slope : float
        The exponent over the last decade of t with the c of the shortest.
    """

    best: tuple[float, ...]
    final: float
    kept: float
    kept_slope: float


def tuning(grid: Mapping[Cell, Trajectory]) -> dict[tuple[str, str, str], Steps]:
    """Return the steps by problem, attack and optimizer."""
    groups: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    for cell in best_steps(grid):
        groups[cell.problem, cell.attack, cell.optimizer].append(cell)
    found = {}
    for key, cells in groups.items():
        first, *_, last = sorted(cells, key=lambda cell: cell.horizon)
        kept = grid[replace(last, step=first.step)]
        best = tuple(cell.step for cell in sorted(cells, key=lambda cell: cell.horizon))
        found[key] = Steps(best, score(grid[last]), score(kept), slope(kept))
    return found


# --- claims -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and for how many comparisons the runs bear it out."""

    sentence: str
    problem: str
    attack: str
    holds: int
    of: int


def claims(lines: Mapping[Key, Line], steps: Mapping[tuple[str, str, str], Steps]) -> list[Claim]:
    """Return each claim with its count, for each problem and attack.

    A claim is judged by means over seeds and by no margin but the ones in its sentence.
    """
    found: list[Claim] = []
    for problem, attack in dict.fromkeys(key[:2] for key in lines):
        mine = {key[2:]: line for key, line in lines.items() if key[:2] == (problem, attack)}
        kept = {key[2]: step for key, step in steps.items() if key[:2] == (problem, attack)}
        for sentence, verdicts in (_verdicts(mine) | _tuning_verdicts(kept)).items():
            if verdicts:
                found.append(Claim(sentence, problem, attack, sum(verdicts), len(verdicts)))
    return found


def _tuning_verdicts(steps: Mapping[str, Steps]) -> dict[str, list[bool]]:
    """Return what the grid says; `steps` is by optimizer."""
    return {
        "μ²-SGD goes on with the step chosen for T/16 (slope in t below -0.5)": [
            step.kept_slope < -0.5 for arm, step in steps.items() if arm == "mu2"
        ],
        "the rival stalls with the step chosen for T/16 (slope in t above -0.1)": [
            step.kept_slope > -0.1 for arm, step in steps.items() if arm != "mu2"
        ],
    }


def _verdicts(lines: Mapping[tuple[str, str], Line]) -> dict[str, list[bool]]:
    """Return what each comparison says; `lines` is by rule and optimizer."""
    robust = {key: line for key, line in lines.items() if key[0] != "mean"}
    rules, arms = ({key[i]: None for key in robust} for i in (0, 1))
    rivals = [(rule, arm) for rule, arm in robust if arm != "mu2" and (rule, "mu2") in robust]

    def final(rule: str, arm: str) -> float:
        return lines[rule, arm].final[0]

    return {
        "μ²-SGD's loss falls at least as T^-0.5": [
            line.slope_horizon[0] <= -0.5 for (_, arm), line in robust.items() if arm == "mu2"
        ],
        "μ²-SGD ends below the rival at its best step": [
            final(rule, "mu2") < final(rule, arm) for rule, arm in rivals
        ],
        "the rival stalls even if tuned for each T (slope in T above -0.1)": [
            lines[key].slope_horizon[0] > -0.1 for key in rivals
        ],
        "w-CTMA ends no higher than its base": [
            final(f"ctma({rule})", arm) <= final(rule, arm)
            for rule in rules
            for arm in arms
            if {(rule, arm), (f"ctma({rule})", arm)} <= robust.keys()
        ],
        "the mean ends at least ten times as high as the best robust rule": [
            final("mean", arm) >= 10 * min(final(*key) for key in robust if key[1] == arm)
            for arm in arms
            if ("mean", arm) in lines
        ],
    }


# --- files ------------------------------------------------------------------------------------


def report(out: Path, results: Mapping[Cell, Trajectory], grid: Mapping[Cell, Trajectory]) -> None:
    """Write the summary as CSV and Markdown and one figure a problem and attack."""
    lines = summarise(results)
    with (out / "convex_summary.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = ("final", "slope_t", "slope_horizon")
        spreads = [f"{name}{end}" for name in names for end in ("", "_deviation")]
        writer.writerow(["problem", "attack", "rule", "optimizer", "step", *spreads])
        for key, line in lines.items():
            numbers = (*line.final, *line.slope_t, *line.slope_horizon)
            writer.writerow([*key, line.step, *(f"{number:.4g}" for number in numbers)])
    (out / "convex_summary.md").write_text(markdown(lines, tuning(grid)), encoding="utf-8")
    for problem, attack in dict.fromkeys((key[0], key[1]) for key in lines):
        mine = {
            cell: points
            for cell, points in results.items()
            if (cell.problem, cell.attack) == (problem, attack)
        }
        figure(mine, out / f"convex_{problem}_{attack}.png")


def markdown(lines: Mapping[Key, Line], steps: Mapping[tuple[str, str, str], Steps]) -> str:
    """Return the claims, the need of tuning and, for each problem and attack, all lines."""
    attacks = list(dict.fromkeys(key[1] for key in lines))
    counts = {
        (c.sentence, c.problem, c.attack): f"{c.holds} of {c.of}" for c in claims(lines, steps)
    }
    text = [f"| holds in, under attack | problem | {' | '.join(attacks)} |"]
    text.append("|---|---|" + "---|" * len(attacks))
    for sentence, problem in sorted({key[:2] for key in counts}):
        cells = [counts.get((sentence, problem, attack), "") for attack in attacks]
        text.append(f"| {sentence} | {problem} | {' | '.join(cells)} |")
    head = "excess at T | with the c of T/16 | its slope in t"
    text += ["", "## Step sizes, under the rule and the seed of the grid", ""]
    text.append(f"| problem | attack | optimizer | c for T/16, T/4, T | {head} |")
    text.append("|---|---|---|---|---|---|---|")
    for (problem, attack, arm), step in steps.items():
        best = ", ".join(f"{c:g}" for c in step.best)
        numbers = f"{step.final:.2e} | {step.kept:.2e} | {step.kept_slope:.2f}"
        text.append(f"| {problem} | {attack} | {NAMES[arm]} | {best} | {numbers} |")
    for problem, attack in dict.fromkeys((key[0], key[1]) for key in lines):
        text += ["", f"## {problem}, attack: {attack}", ""]
        text.append("| rule | optimizer | c | final excess | slope in t | slope in T |")
        text.append("|---|---|---|---|---|---|")
        mine = {key[2:]: line for key, line in lines.items() if key[:2] == (problem, attack)}
        for (rule, arm), line in mine.items():
            cells = [f"{line.final[0]:.2e} ± {line.final[1]:.0e}"]
            cells += [f"{m:.2f} ± {s:.2f}" for m, s in (line.slope_t, line.slope_horizon)]
            text.append(f"| {rule} | {NAMES[arm]} | {line.step:g} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"
