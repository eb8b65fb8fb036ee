"""results.jsonl and summary.csv of the paper's experiments."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from apps.paper.cells import Cell
from apps.paper.figures import cells_of
from apps.paper.results import Results
from apps.paper.run import Evaluation
from tests.apps.test_paper import CELL


def test_a_cell_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for accuracy in (0.1, 0.2):
        results.add(CELL, [Evaluation(0, 0.0, 1.0, 1.0), Evaluation(60, accuracy, 1.0, 1.0, True)])
    assert [line["accuracy"] for line in results.entries()] == [0.0, 0.2]
    (row,) = results.summarise()
    assert (row["seeds"], row["accuracy"]) == (1, 0.2)
    assert len(cells_of("fig2", [1, 1])) == len(cells_of("fig2", [1]))


def test_entries_of_other_versions_and_damaged_lines_are_skipped(tmp_path: Path) -> None:
    results = Results(tmp_path)
    path = tmp_path / "results.jsonl"
    results.add(CELL, [Evaluation(0, 0.1, 1.0, 1.0), Evaluation(20, 0.2, 1.0, 1.0)])  # cut off
    path.write_bytes(path.read_bytes() + b'{"cell": "old", "final": true}\n\xff\xfe\n[1]\n"half')
    results.add(CELL, [Evaluation(0, 0.1, 1.0, 1.0), Evaluation(60, 0.3, 1.0, 1.0, True)])
    assert [line["reply"] for line in results.entries()] == [0, 60]
    assert results.unfinished([CELL]) == []


def test_several_commands_may_write_into_one_folder(tmp_path: Path) -> None:
    cells = [replace(CELL, seed=seed) for seed in range(40)]

    def add(part: list[Cell]) -> None:
        for cell in part:
            Results(tmp_path).add(cell, [Evaluation(60, 0.5, 1.0, 1.0, True)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, [cells[k::4] for k in range(4)]))
    assert Results(tmp_path).unfinished(cells) == []


def test_a_summary_gives_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for seed, accuracy in ((1, 0.5), (2, 0.7), (3, 0.9)):
        cell = replace(CELL, seed=seed)
        results.add(cell, [Evaluation(60, accuracy, float("inf"), 1.0, final=True)])
    (row,) = results.summarise()
    assert (row["seeds"], row["accuracy"], row["deviation"]) == (3, 0.7, 0.2)
    assert all(line["loss"] is None for line in results.entries())
