"""What the convex check found: fitted slopes, final losses, the claims they bear on, figures."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.paper.convex_loop import Cell, Trajectory, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Key = tuple[str, str, str, str]
"""Problem, attack, rule, optimizer."""

TINY = 1e-16
"""Excess losses below are rounding, of either sign: logarithms see this number."""

NAMES = {
    "mu2": "μ²-SGD",
    "momentum": "momentum 0.9",
    "sgd": "SGD",
    "sgd_average": "SGD, averaged",
}
COLOURS = {"mu2": "#0072b2", "momentum": "#d55e00", "sgd": "#009e73", "sgd_average": "#999999"}


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


# --- claims -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper and for how many comparisons the runs bear it out."""

    sentence: str
    problem: str
    attack: str
    holds: int
    of: int


def claims(lines: Mapping[Key, Line]) -> list[Claim]:
    """Return each claim with its count, for each problem and attack.

    A claim is judged by means over seeds and by no margin but the ones in its sentence.
    """
    found: list[Claim] = []
    for problem, attack in dict.fromkeys((key[0], key[1]) for key in lines):
        mine = {key[2:]: line for key, line in lines.items() if key[:2] == (problem, attack)}
        for sentence, verdicts in _verdicts(mine).items():
            if verdicts:
                found.append(Claim(sentence, problem, attack, sum(verdicts), len(verdicts)))
    return found


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
        "the rival stalls within a run (slope in t above -0.1)": [
            lines[key].slope_t[0] > -0.1 for key in rivals
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
            final("mean", arm) >= 10 * min(final(rule, arm) for rule in rules)
            for arm in arms
            if ("mean", arm) in lines
        ],
    }


# --- files ------------------------------------------------------------------------------------


def report(out: Path, results: Mapping[Cell, Trajectory]) -> None:
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
    (out / "convex_summary.md").write_text(markdown(lines), encoding="utf-8")
    for problem, attack in dict.fromkeys((key[0], key[1]) for key in lines):
        mine = {
            cell: points
            for cell, points in results.items()
            if (cell.problem, cell.attack) == (problem, attack)
        }
        figure(mine, out / f"convex_{problem}_{attack}.png")


def markdown(lines: Mapping[Key, Line]) -> str:
    """Return the claims and, for each problem and attack, the table of all lines."""
    attacks = list(dict.fromkeys(key[1] for key in lines))
    counts = {(c.sentence, c.problem, c.attack): f"{c.holds} of {c.of}" for c in claims(lines)}
    text = [f"| holds in, under attack | problem | {' | '.join(attacks)} |"]
    text.append("|---|---|" + "---|" * len(attacks))
    for sentence, problem in sorted({key[:2] for key in counts}):
        cells = [counts.get((sentence, problem, attack), "") for attack in attacks]
        text.append(f"| {sentence} | {problem} | {' | '.join(cells)} |")
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


def figure(results: Mapping[Cell, Trajectory], path: Path) -> None:
    """Draw excess loss against t, one panel a rule, one line an optimizer.

    Lines are geometric means over seeds of the longest run, bands reach from the lowest to the
    highest seed; dots end the shorter runs, whose step sizes were chosen for their length.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rules = list(dict.fromkeys(cell.rule for cell in results))
    columns = min(3, len(rules))
    rows = -(-len(rules) // columns)
    size = (3.1 * columns + 0.4, 2.5 * rows + 0.8)
    made, grid = plt.subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    panels: list[Axes] = list(grid.flat)
    for panel, rule in zip(panels, rules, strict=False):
        _panel(panel, {c: points for c, points in results.items() if c.rule == rule})
        panel.set_title(rule, fontsize=10)
    for panel in panels[len(rules) :]:
        panel.set_visible(False)
    for row in grid:
        row[0].set_ylabel("excess loss $f(x_t) - f^*$")
    for panel in panels[max(0, len(rules) - columns) : len(rules)]:
        panel.set_xlabel("server step $t$")
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    cell = next(iter(results))
    made.suptitle(f"{cell.problem}, attack: {cell.attack}".replace("_", " "), fontsize=11)
    made.savefig(path, dpi=160)
    plt.close(made)


def _panel(panel: "Axes", results: Mapping[Cell, Trajectory]) -> None:
    """Draw one rule."""
    longest = max(cell.horizon for cell in results)
    for arm in (name for name in NAMES if any(cell.optimizer == name for cell in results)):
        runs: dict[int, list[Trajectory]] = defaultdict(list)
        for cell, points in results.items():
            if cell.optimizer == arm:
                runs[cell.horizon].append(points)
        t = [point[0] for point in runs[longest][0]]
        excess = np.array([[max(point[1], TINY) for point in run] for run in runs[longest]])
        mean, colour = np.exp(np.log(excess).mean(axis=0)), COLOURS[arm]
        panel.loglog(t, mean, color=colour, linewidth=1.4, label=NAMES[arm])
        panel.fill_between(t, excess.min(axis=0), excess.max(axis=0), color=colour, alpha=0.15)
        shorter = sorted(horizon for horizon in runs if horizon < longest)
        ends = [np.exp(np.log([score(p) for p in runs[h]]).mean()) for h in shorter]
        panel.plot(shorter, ends, "o", color=colour, markersize=4)
    panel.set_xlim(left=max(1, longest / 500))  # nothing moves before
    panel.grid(alpha=0.25, linewidth=0.6)
