"""One picture per figure: accuracy against replies, one panel per attack."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.paper.results import Entry


def draw(figure: str, entries: Sequence[Entry], path: Path) -> None:
    """Write a PNG: mean over seeds as a line, ± one deviation as a band.

    Parameters
    ----------
    figure : str
        Its title.
    entries : sequence of dict
        Entries of ``results.jsonl`` of this figure.
    path : Path
        File of the PNG.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((entry["attack"], entry["byz_fraction"]) for entry in entries))
    compared = _compared(entries)
    series = list(dict.fromkeys(_label(entry, compared) for entry in entries))
    picture, axes = plt.subplots(
        1, len(panels), figsize=(max(7.0, 4.2 * len(panels)), 3.8), sharey=True, squeeze=False
    )
    for axis, (attack, fraction) in zip(axes[0], panels, strict=True):
        for number, label in enumerate(series):
            selected = [
                entry
                for entry in entries
                if (entry["attack"], entry["byz_fraction"]) == (attack, fraction)
                and _label(entry, compared) == label
            ]
            _draw_series(axis, selected, label, f"C{number}")
        axis.set_title(f"{attack.replace('_', ' ')}, λ = {fraction:g}")
        axis.set_xlabel("accepted replies")
        axis.grid(alpha=0.3)
        axis.set_ylim(0, 1)
    axes[0][0].set_ylabel("test accuracy")
    axes[0][-1].legend(fontsize="small", loc="lower right")
    picture.suptitle(f"{figure}: {_subtitle(entries)}", fontsize="medium")
    picture.tight_layout()
    picture.savefig(path, dpi=150)
    plt.close(picture)


def _compared(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return the settings that vary within a panel; the rule if none does."""
    varying = [key for key in ("rule", "optimizer") if len({entry[key] for entry in entries}) > 1]
    return tuple(varying) or ("rule",)


def _label(entry: Entry, compared: tuple[str, ...]) -> str:
    names = {"mu2": "μ²-SGD", "sgd": "SGD", "momentum": "momentum"}
    return ", ".join(names.get(str(entry[key]), str(entry[key])) for key in compared)


def _draw_series(axis: Any, entries: Sequence[Entry], label: str, colour: str) -> None:
    if not entries:
        return
    replies = sorted({entry["reply"] for entry in entries})
    values = [[e["accuracy"] for e in entries if e["reply"] == reply] for reply in replies]
    means = np.array([np.mean(v) for v in values])
    spread = np.array([np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values])
    style = "--" if "unweighted" in label else ":" if label.startswith("mean") else "-"
    axis.plot(replies, means, style, color=colour, label=label, linewidth=1.5)
    axis.fill_between(replies, means - spread, means + spread, color=colour, alpha=0.15, lw=0)


def _subtitle(entries: Sequence[Entry]) -> str:
    first = entries[0]
    seeds = len({entry["seed"] for entry in entries})
    return (
        f"{first['dataset']}, {first['nodes']} nodes, {first['byzantine']} Byzantine, "
        f"{first['arrivals']} arrivals, {seeds} seed{'s' if seeds > 1 else ''}"
    )
