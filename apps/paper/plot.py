"""One picture for each figure: accuracy against replies, a panel for each attack."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.paper.results import Line


def draw(figure: str, lines: Sequence[Line], path: Path) -> None:
    """Write a PNG: mean over seeds as a line, ± one deviation as a band.

    Parameters
    ----------
    figure : str
        Its title.
    lines : sequence of dict
        Lines of ``results.jsonl`` of this figure.
    path : Path
        Where the PNG goes.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((line["attack"], line["byz_fraction"]) for line in lines))
    compared = _compared(lines)
    series = list(dict.fromkeys(_label(line, compared) for line in lines))
    picture, axes = plt.subplots(
        1, len(panels), figsize=(max(7.0, 4.2 * len(panels)), 3.8), sharey=True, squeeze=False
    )
    for axis, (attack, fraction) in zip(axes[0], panels, strict=True):
        for number, label in enumerate(series):
            mine = [
                line
                for line in lines
                if (line["attack"], line["byz_fraction"]) == (attack, fraction)
                and _label(line, compared) == label
            ]
            _draw_series(axis, mine, label, f"C{number}")
        axis.set_title(f"{attack.replace('_', ' ')}, λ = {fraction:g}")
        axis.set_xlabel("accepted replies")
        axis.grid(alpha=0.3)
        axis.set_ylim(0, 1)
    axes[0][0].set_ylabel("test accuracy")
    axes[0][-1].legend(fontsize="small", loc="lower right")
    picture.suptitle(f"{figure}: {_subtitle(lines)}", fontsize="medium")
    picture.tight_layout()
    picture.savefig(path, dpi=150)
    plt.close(picture)


def _compared(lines: Sequence[Line]) -> tuple[str, ...]:
    """Return what the lines of a panel differ in; the rule if in nothing."""
    varying = [key for key in ("rule", "optimizer") if len({line[key] for line in lines}) > 1]
    return tuple(varying) or ("rule",)


def _label(line: Line, compared: tuple[str, ...]) -> str:
    names = {"mu2": "μ²-SGD", "sgd": "SGD", "momentum": "momentum"}
    return ", ".join(names.get(str(line[key]), str(line[key])) for key in compared)


def _draw_series(axis: Any, lines: Sequence[Line], label: str, colour: str) -> None:
    if not lines:
        return
    replies = sorted({line["reply"] for line in lines})
    values = [[e["accuracy"] for e in lines if e["reply"] == reply] for reply in replies]
    means = np.array([np.mean(v) for v in values])
    spread = np.array([np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values])
    style = "--" if "unweighted" in label else ":" if label.startswith("mean") else "-"
    axis.plot(replies, means, style, color=colour, label=label, linewidth=1.5)
    axis.fill_between(replies, means - spread, means + spread, color=colour, alpha=0.15, lw=0)


def _subtitle(lines: Sequence[Line]) -> str:
    first = lines[0]
    seeds = len({line["seed"] for line in lines})
    return (
        f"{first['dataset']}, {first['nodes']} nodes, {first['byzantine']} Byzantine, "
        f"{first['arrivals']} arrivals, {seeds} seed{'s' if seeds > 1 else ''}"
    )
