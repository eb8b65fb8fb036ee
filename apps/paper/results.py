"""results.jsonl and summary.csv: what was measured, and which cells are finished."""

import csv
import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from apps.paper.cells import Cell
from apps.paper.run import Evaluation
from flwr_byzasync.errors import ConfigError

RESULTS, SUMMARY = "results.jsonl", "summary.csv"
Line = dict[str, Any]


class Results:
    """The lines of ``results.jsonl`` in a folder; a cell's are written together when it ends.

    So an interrupted reproduction loses at most the cells in progress, and one that is begun
    again goes on from the others. A line cut off by a power failure is dropped.

    Parameters
    ----------
    folder : Path
        Made if missing.

    Raises
    ------
    ConfigError
        If the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / RESULTS).open("a"):
                pass
        except OSError as error:
            legal = f"a folder that can be made and written to ({error.strerror})"
            raise ConfigError("--out", str(folder), legal, "pass another path") from error

    def lines(self) -> list[Line]:
        """Return the lines of finished cells."""
        kept: dict[str, list[Line]] = {}
        finished: set[str] = set()
        for text in (self.folder / RESULTS).read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                kept.setdefault(line["cell"], []).append(line)
            except (ValueError, TypeError, KeyError):
                continue
            if line.get("final"):
                finished.add(line["cell"])
        return [line for name, lines in kept.items() if name in finished for line in lines]

    def unfinished(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return the cells of which there is no result yet."""
        done = {line["cell"] for line in self.lines()}
        return [cell for cell in cells if cell.name not in done]

    def add(self, cell: Cell, evaluations: Sequence[Evaluation]) -> None:
        """Append a finished cell's lines at once, and make sure that they are on the disk."""
        text = "".join(_line(cell, evaluation) + "\n" for evaluation in evaluations)
        path = self.folder / RESULTS
        with path.open("r+", encoding="utf-8") as file:
            # An append that was cut off must not swallow the line after it.
            whole = file.read()
            file.write("\n" + text if whole and not whole.endswith("\n") else text)
            file.flush()
            os.fsync(file.fileno())

    def of(self, cells: Iterable[Cell]) -> list[Line]:
        """Return the lines of some cells."""
        names = {cell.name for cell in cells}
        return [line for line in self.lines() if line["cell"] in names]

    def summarise(self) -> list[Line]:
        """Write ``summary.csv``: final accuracy of all finished cells, mean ± deviation by seed.

        Returns
        -------
        list of dict
            Its rows: figure, dataset, arrivals, attack, byz_fraction, rule, optimizer, seeds,
            accuracy, deviation (of the sample; empty for one seed), lowest, highest, replies,
            seconds.
        """
        groups: dict[tuple[Any, ...], list[Line]] = {}
        for line in self.lines():
            if line.get("final"):
                groups.setdefault(tuple(line[key] for key in GROUP), []).append(line)
        rows = [_row(dict(zip(GROUP, key, strict=True)), lines) for key, lines in groups.items()]
        temporary = self.folder / (SUMMARY + ".new")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["figure"])
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.folder / SUMMARY)
        return rows


LAST = ("seed", "evaluate_every")
GROUP = tuple(field.name for field in fields(Cell) if field.name not in LAST)
"""Settings that tell apart what is averaged over seeds."""


def _line(cell: Cell, evaluation: Evaluation) -> str:
    measured = asdict(evaluation)
    if not math.isfinite(measured["loss"]):
        measured["loss"] = None  # JSON has no infinity
    measured["seconds"] = round(measured["seconds"], 3)
    return json.dumps({"cell": cell.name, **asdict(cell), **measured})


def _row(settings: Line, lines: Sequence[Line]) -> Line:
    accuracies = [line["accuracy"] for line in lines]
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return {
        **settings,
        "seeds": len(lines),
        "accuracy": round(statistics.fmean(accuracies), 4),
        "deviation": "" if deviation is None else round(deviation, 4),
        "lowest": round(min(accuracies), 4),
        "highest": round(max(accuracies), 4),
        "reply": max(line["reply"] for line in lines),
        "seconds": round(statistics.fmean(line["seconds"] for line in lines), 1),
    }
