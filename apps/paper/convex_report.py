"""Report of the convex check: fitted slopes, final losses, claims of the paper."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from apps.paper.convex_figure import NAMES, TINY, figure
from apps.paper.convex_loop import ConvexCell, Trajectory, best_steps, score

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
class Summary:
    """One optimizer, rule, problem and attack, over all seeds.

    Parameters
    ----------
    step : float
        c at the longest horizon.
    final : tuple of float
        Mean and deviation over seeds of the excess, averaged over the last octave of t.
    slope_t : tuple of float
        Of the exponent over the last decade of t in the longest run; 0 is a floor.
    slope_horizon : tuple of float
        Of the exponent over the horizons, with the step size tuned for each, as in the theory's
        rate.
    """

    step: float
    final: tuple[float, float]
    slope_t: tuple[float, float]
    slope_horizon: tuple[float, float]


def summarise(results: Mapping[ConvexCell, Trajectory]) -> dict[Key, Summary]:
    """Return a summary per problem, attack, rule and optimizer."""
    runs: dict[Key, dict[int, dict[int, Trajectory]]] = defaultdict(lambda: defaultdict(dict))
    steps: dict[Key, float] = {}
    longest = max(cell.horizon for cell in results)
    for cell, points in results.items():
        key = (cell.problem, cell.attack, cell.rule, cell.optimizer)
        runs[key][cell.seed][cell.horizon] = points
        if cell.horizon == longest:
            steps[key] = cell.step
    return {
        key: Summary(
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
    """How much one optimizer needs tuning, from the grid's one rule and seed.

    Parameters
    ----------
    best : tuple of float
        Best c for each horizon, shortest first.
    final, kept : float
        Score at the longest horizon, with its own best c and with that of the shortest.
    kept_slope : float
        Exponent over the last decade of t with the best c of the shortest.
    """

    best: tuple[float, ...]
    final: float
    kept: float
    kept_slope: float


def tuning(grid: Mapping[ConvexCell, Trajectory]) -> dict[tuple[str, str, str], Steps]:
    """Return the steps by problem, attack and optimizer."""
    groups: dict[tuple[str, str, str], list[ConvexCell]] = defaultdict(list)
    for cell in best_steps(grid):
        groups[cell.problem, cell.attack, cell.optimizer].append(cell)
    steps = {}
    for key, cells in groups.items():
        first, *_, last = sorted(cells, key=lambda cell: cell.horizon)
        kept = grid[replace(last, step=first.step)]
        best = tuple(cell.step for cell in sorted(cells, key=lambda cell: cell.horizon))
        steps[key] = Steps(best, score(grid[last]), score(kept), slope(kept))
    return steps


# --- claims -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and in how many comparisons it holds."""

    sentence: str
    problem: str
    attack: str
    holds: int
    of: int


def claims(
    summaries: Mapping[Key, Summary], steps: Mapping[tuple[str, str, str], Steps]
) -> list[Claim]:
    """Return each claim with its count, per problem and attack.

    Claims compare means over seeds, without margins other than those in their sentence.
    """
    counted: list[Claim] = []
    for problem, attack in dict.fromkeys(key[:2] for key in summaries):
        selected = {
            key[2:]: summary for key, summary in summaries.items() if key[:2] == (problem, attack)
        }
        kept = {key[2]: step for key, step in steps.items() if key[:2] == (problem, attack)}
        for sentence, verdicts in (_verdicts(selected) | _tuning_verdicts(kept)).items():
            if verdicts:
                counted.append(Claim(sentence, problem, attack, sum(verdicts), len(verdicts)))
    return counted


def _tuning_verdicts(steps: Mapping[str, Steps]) -> dict[str, list[bool]]:
    """Return the comparisons of tuning; `steps` is by optimizer."""
    return {
        "μ²-SGD goes on with the step chosen for T/16 (slope in t below -0.5)": [
            step.kept_slope < -0.5 for arm, step in steps.items() if arm == "mu2"
        ],
        "the rival stalls with the step chosen for T/16 (slope in t above -0.1)": [
            step.kept_slope > -0.1 for arm, step in steps.items() if arm != "mu2"
        ],
    }


def _verdicts(summaries: Mapping[tuple[str, str], Summary]) -> dict[str, list[bool]]:
    """Return the comparisons of summaries, which are by rule and optimizer."""
    robust = {key: summary for key, summary in summaries.items() if key[0] != "mean"}
    rules, arms = ({key[i]: None for key in robust} for i in (0, 1))
    rivals = [(rule, arm) for rule, arm in robust if arm != "mu2" and (rule, "mu2") in robust]

    def final(rule: str, arm: str) -> float:
        return summaries[rule, arm].final[0]

    return {
        "μ²-SGD's loss falls at least as T^-0.5": [
            summary.slope_horizon[0] <= -0.5 for (_, arm), summary in robust.items() if arm == "mu2"
        ],
        "μ²-SGD ends below the rival at its best step": [
            final(rule, "mu2") < final(rule, arm) for rule, arm in rivals
        ],
        "the rival stalls even if tuned for each T (slope in T above -0.1)": [
            summaries[key].slope_horizon[0] > -0.1 for key in rivals
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
            if ("mean", arm) in summaries
        ],
    }


# --- files ------------------------------------------------------------------------------------


def report(
    out: Path, results: Mapping[ConvexCell, Trajectory], grid: Mapping[ConvexCell, Trajectory]
) -> None:
    """Write the summary as CSV and Markdown, and one figure per problem and attack."""
    summaries = summarise(results)
    with (out / "convex_summary.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = ("final", "slope_t", "slope_horizon")
        spreads = [f"{name}{end}" for name in names for end in ("", "_deviation")]
        writer.writerow(["problem", "attack", "rule", "optimizer", "step", *spreads])
        for key, summary in summaries.items():
            numbers = (*summary.final, *summary.slope_t, *summary.slope_horizon)
            writer.writerow([*key, summary.step, *(f"{number:.4g}" for number in numbers)])
    (out / "convex_summary.md").write_text(markdown(summaries, tuning(grid)), encoding="utf-8")
    for problem, attack in dict.fromkeys((key[0], key[1]) for key in summaries):
        selected = {
            cell: points
            for cell, points in results.items()
            if (cell.problem, cell.attack) == (problem, attack)
        }
        figure(selected, out / f"convex_{problem}_{attack}.png")


def markdown(summaries: Mapping[Key, Summary], steps: Mapping[tuple[str, str, str], Steps]) -> str:
    """Return the claims, the tuning and, per problem and attack, all summaries."""
    attacks = list(dict.fromkeys(key[1] for key in summaries))
    counts = {
        (c.sentence, c.problem, c.attack): f"{c.holds} of {c.of}" for c in claims(summaries, steps)
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
    for problem, attack in dict.fromkeys((key[0], key[1]) for key in summaries):
        text += ["", f"## {problem}, attack: {attack}", ""]
        text.append("| rule | optimizer | c | final excess | slope in t | slope in T |")
        text.append("|---|---|---|---|---|---|")
        selected = {
            key[2:]: summary for key, summary in summaries.items() if key[:2] == (problem, attack)
        }
        for (rule, arm), summary in selected.items():
            cells = [f"{summary.final[0]:.2e} ± {summary.final[1]:.0e}"]
            cells += [f"{m:.2f} ± {s:.2f}" for m, s in (summary.slope_t, summary.slope_horizon)]
            text.append(f"| {rule} | {NAMES[arm]} | {summary.step:g} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"
