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

from apps.paper.cells import NEWER, Cell
from apps.paper.run import Evaluation
from flwr_byzasync import ConfigError

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
        except (OSError, ValueError) as error:
            legal = f"a folder that can be made and written to ({error})"
            raise ConfigError("--out", str(folder), legal, "pass another path") from error

    def lines(self) -> list[Line]:
        """Return the lines of finished cells; of a cell that was run twice, the last ones."""
        begun: dict[str, list[Line]] = {}
        finished: dict[str, list[Line]] = {}
        text = (self.folder / RESULTS).read_text(encoding="utf-8", errors="replace")
        for row in text.splitlines():
            line = _parsed(row)
            if line is None:
                continue
            name = line["cell"]
            last = begun.get(name)
            # A set that was cut off is followed by a new one, which begins at reply 0 again.
            fresh = last is None or last[-1]["final"] or line["reply"] <= last[-1]["reply"]
            begun[name] = [line] if fresh else [*(last or ()), line]
            if line["final"]:
                finished[name] = begun[name]
        return [line for lines in finished.values() for line in lines]

    def unfinished(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return the cells of which there is no result yet."""
        done = {line["cell"] for line in self.lines()}
        return [cell for cell in cells if cell.name not in done]

    def add(self, cell: Cell, evaluations: Sequence[Evaluation]) -> None:
        """Append a finished cell's lines at once, and make sure that they are on the disk."""
        path = self.folder / RESULTS
        whole = path.stat().st_size == 0 or path.read_bytes().endswith(b"\n")
        text = "".join(_line(cell, evaluation) + "\n" for evaluation in evaluations)
        # In one piece at the end of the file, whoever else appends; and an append that was cut
        # off must not swallow the line after it.
        with path.open("ab", buffering=0) as file:
            file.write(("" if whole else "\n").encode() + text.encode())
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
            accuracy, deviation (of the sample; empty for one seed), lowest, highest, reply,
            seconds, beside all other settings.
        """
        groups: dict[tuple[Any, ...], list[Line]] = {}
        for line in self.lines():
            if line["final"]:
                groups.setdefault(group_of(line), []).append(line)
        rows = [_row(dict(zip(GROUP, key, strict=True)), lines) for key, lines in groups.items()]
        temporary = self.folder / (SUMMARY + ".new")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["figure"])
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.folder / SUMMARY)
        return rows


SETTINGS = tuple(field.name for field in fields(Cell))
GROUP = tuple(name for name in SETTINGS if name != "seed")
"""Settings that tell apart what is averaged over seeds."""
MEASURED = tuple(field.name for field in fields(Evaluation))


def group_of(line: Line) -> tuple[Any, ...]:
    """Return what a line has in common with those of other seeds."""
    return tuple(line[key] for key in GROUP)


def _parsed(row: str) -> Line | None:
    """Return a line, or None if it is none of this version's."""
    try:
        line = {**NEWER, **json.loads(row)}
        return line if line.keys() >= {"cell", *SETTINGS, *MEASURED} else None
    except (ValueError, TypeError):
        return None


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
