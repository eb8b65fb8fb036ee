"""results.jsonl and summary.csv: the measurements and the finished cells."""

import csv
import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from apps.paper.cells import ADDED_FIELDS, Cell
from apps.paper.run import Evaluation
from flwr_byzasync import ConfigError

RESULTS, SUMMARY = "results.jsonl", "summary.csv"
Entry = dict[str, Any]


class Results:
    """The entries of ``results.jsonl`` in a folder; those of a cell are written when it ends.

    An interrupted reproduction loses at most the cells in progress and resumes from the others.
    An incomplete line is dropped.

    Parameters
    ----------
    folder : Path
        Created if missing.

    Raises
    ------
    ConfigError
        If the folder cannot be created or written to.
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

    def entries(self) -> list[Entry]:
        """Return the entries of finished cells; of a cell that was run twice, the last ones."""
        begun: dict[str, list[Entry]] = {}
        finished: dict[str, list[Entry]] = {}
        text = (self.folder / RESULTS).read_text(encoding="utf-8", errors="replace")
        for row in text.splitlines():
            entry = _parsed(row)
            if entry is None:
                continue
            name = entry["cell"]
            last = begun.get(name)
            # A set that was cut off is followed by a new one, which starts at reply 0.
            fresh = last is None or last[-1]["final"] or entry["reply"] <= last[-1]["reply"]
            begun[name] = [entry] if fresh else [*(last or ()), entry]
            if entry["final"]:
                finished[name] = begun[name]
        return [entry for entries in finished.values() for entry in entries]

    def unfinished(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return the cells without a result."""
        done = {entry["cell"] for entry in self.entries()}
        return [cell for cell in cells if cell.name not in done]

    def add(self, cell: Cell, evaluations: Sequence[Evaluation]) -> None:
        """Append a finished cell's entries in one write, and sync them to disk."""
        path = self.folder / RESULTS
        whole = path.stat().st_size == 0 or path.read_bytes().endswith(b"\n")
        text = "".join(_serialised(cell, evaluation) + "\n" for evaluation in evaluations)
        # One unbuffered append, as other processes may append too; after an incomplete line the
        # text starts with a newline.
        with path.open("ab", buffering=0) as file:
            file.write(("" if whole else "\n").encode() + text.encode())
            os.fsync(file.fileno())

    def of(self, cells: Iterable[Cell]) -> list[Entry]:
        """Return the entries of these cells."""
        names = {cell.name for cell in cells}
        return [entry for entry in self.entries() if entry["cell"] in names]

    def summarise(self) -> list[Entry]:
        """Write ``summary.csv``: final accuracy of finished cells, mean and deviation over seeds.

        Returns
        -------
        list of dict
            Its rows: figure, dataset, arrivals, attack, byz_fraction, rule, optimizer, seeds,
            accuracy, sample deviation (empty for one seed), lowest, highest, reply, seconds, and
            all other settings.
        """
        groups: dict[tuple[Any, ...], list[Entry]] = {}
        for entry in self.entries():
            if entry["final"]:
                groups.setdefault(group_of(entry), []).append(entry)
        rows = [_row(dict(zip(GROUP, key, strict=True)), each) for key, each in groups.items()]
        temporary = self.folder / (SUMMARY + ".new")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["figure"])
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.folder / SUMMARY)
        return rows


SETTINGS = tuple(field.name for field in fields(Cell))
GROUP = tuple(name for name in SETTINGS if name != "seed")
"""Settings of a group of cells that differ only by seed."""
MEASURED = tuple(field.name for field in fields(Evaluation))


def group_of(entry: Entry) -> tuple[Any, ...]:
    """Return the settings that an entry shares with other seeds."""
    return tuple(entry[key] for key in GROUP)


def _parsed(row: str) -> Entry | None:
    """Return the entry of a line, or None if the line is damaged or of another version."""
    try:
        entry = {**ADDED_FIELDS, **json.loads(row)}
        return entry if entry.keys() >= {"cell", *SETTINGS, *MEASURED} else None
    except (ValueError, TypeError):
        return None


def _serialised(cell: Cell, evaluation: Evaluation) -> str:
    measured = asdict(evaluation)
    if not math.isfinite(measured["loss"]):
        measured["loss"] = None  # JSON has no infinity
    measured["seconds"] = round(measured["seconds"], 3)
    return json.dumps({"cell": cell.name, **asdict(cell), **measured})


def _row(settings: Entry, entries: Sequence[Entry]) -> Entry:
    accuracies = [entry["accuracy"] for entry in entries]
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return {
        **settings,
        "seeds": len(entries),
        "accuracy": round(statistics.fmean(accuracies), 4),
        "deviation": "" if deviation is None else round(deviation, 4),
        "lowest": round(min(accuracies), 4),
        "highest": round(max(accuracies), 4),
        "reply": max(entry["reply"] for entry in entries),
        "seconds": round(statistics.fmean(entry["seconds"] for entry in entries), 1),
    }
