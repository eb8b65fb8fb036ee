"""The figures of the convex check: log-log, one panel per rule, one line per optimizer."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.paper.convex_loop import ConvexCell, Trajectory, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TINY = 1e-16
"""Floor of excess losses before the logarithm: below it they are rounding errors."""

NAMES = {
    "mu2": "μ²-SGD",
    "momentum": "momentum 0.9",
    "sgd": "SGD",
    "sgd_average": "SGD, averaged",
}
COLOURS = {"mu2": "#0072b2", "momentum": "#d55e00", "sgd": "#009e73", "sgd_average": "#999999"}


def figure(results: Mapping[ConvexCell, Trajectory], path: Path) -> None:
    """Draw excess loss against t, one panel per rule, one line per optimizer.

    Lines are geometric means over seeds of the longest runs, bands their range; dots are the ends
    of shorter runs, each with the step size tuned for its length.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    rules = list(dict.fromkeys(cell.rule for cell in results))
    columns = min(3, len(rules))
    rows = -(-len(rules) // columns)
    size = (3.1 * columns + 0.4, 2.5 * rows + 0.8)
    picture, grid = plt.subplots(
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
    handles, _ = panels[0].get_legend_handles_labels()
    label = "end of a shorter run, with its own step"
    handles.append(Line2D([], [], linestyle="", marker="o", color="#333333", label=label))
    picture.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    cell = next(iter(results))
    picture.suptitle(f"{cell.problem}, attack: {cell.attack}".replace("_", " "), fontsize=11)
    picture.savefig(path, dpi=160)
    plt.close(picture)


def _panel(panel: "Axes", results: Mapping[ConvexCell, Trajectory]) -> None:
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
    panel.set_xlim(left=max(1, longest / 500))  # the loss is constant before
    panel.grid(alpha=0.25, linewidth=0.6)
