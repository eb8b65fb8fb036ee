"""The sensitivity study as a heat map: clean accuracy, each attack, the worst one."""

import re
from pathlib import Path

import numpy as np

from apps.paper.cells import NO_ATTACK
from apps.paper.sensitivity_report import Grid, caption


def name_of(grid: Grid) -> str:
    """Return the file name of a grid's picture.

    Examples
    --------
    >>> name_of(Grid({"partition": "dirichlet(0.5)"}, {}, (), {}, total=0))
    'sensitivity-dirichlet-0.5.png'
    """
    return f"sensitivity-{re.sub('[^a-z0-9.]+', '-', grid.partition).strip('-')}.png"


def matrix_of(grid: Grid) -> np.ndarray:
    """Return (rules, 1 + attacks + 1) accuracies; NaN where a cell is not finished."""
    rows = []
    for rule in grid.rules:
        worst = grid.worst(rule)
        accuracies = [grid.accuracy.get((rule, attack)) for attack in (NO_ATTACK, *grid.attacks)]
        rows.append([*accuracies, None if worst is None else worst.accuracy])
    return np.array(rows, dtype=np.float64)


def draw(grid: Grid, path: Path) -> None:
    """Write a PNG.

    Parameters
    ----------
    grid : Grid
        One partition of the data.
    path : Path
        File of the PNG.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    values, columns = matrix_of(grid), ("clean", *grid.attacks, "worst")
    picture, axis = plt.subplots(
        figsize=(max(8.5, 3.0 + 0.5 * len(columns)), 2.6 + 0.3 * len(values))
    )
    image = axis.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(values)), [rule + grid.mark(rule) for rule in grid.rules])
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < 0.6 else "black"
            text = f"{100 * value:.0f}"
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    for edge in (0.5, len(columns) - 1.5):
        axis.axvline(edge, color="white", linewidth=3)
    picture.colorbar(image, ax=axis, label="test accuracy", pad=0.02)
    axis.set_title(caption(grid), fontsize="medium", loc="left")
    picture.tight_layout()
    picture.savefig(path, dpi=130)
    plt.close(picture)
