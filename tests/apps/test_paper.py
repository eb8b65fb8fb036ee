"""The paper's experiments: same bits, resumable, and wrong settings are one line."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord

from apps.paper import __main__ as command
from apps.paper import run
from apps.paper.cells import Cell
from apps.paper.figures import FIGURES, cells_of, filtered
from apps.paper.jobs import Job, run_all
from apps.paper.nodes import Stream
from apps.paper.plain import plain, weighted_median
from apps.paper.results import Results
from apps.paper.run import SkipFirstStep
from flwr_byzasync import ConfigError
from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.optimizers import SGD
from tests.tiers import slow

ROOT = Path(__file__).parents[2]
CELL = Cell(
    figure="one",
    dataset="digits",
    rule="cwmed",
    attack="sign_flip",
    optimizer="mu2",
    byz_fraction=0.4,
    seed=1,
    model="mlp",
    replies=60,
    evaluate_every=20,
)


def final_arrays(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    kept: list[ArrayRecord] = []

    def measure(model: object, arrays: ArrayRecord, test: object) -> tuple[float, float]:
        kept.append(arrays)
        return 0.0, 0.0

    monkeypatch.setattr(run, "measure", measure)
    run.run(cell)
    return kept[-1].to_torch_state_dict()


# --- one cell -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp", slow("mlp-bn")])
@pytest.mark.parametrize("arrivals", ["paper", slow("faithful")])
@pytest.mark.parametrize("attack", ["sign_flip", slow("label_flip")])
def test_the_strategy_and_a_plain_loop_end_with_the_same_bits(
    model: str, arrivals: str, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Independent code: no Flower, no table, no strategy, and a median by sorting.
    cell = replace(CELL, model=model, arrivals=arrivals, attack=attack, replies=200)
    arrays = final_arrays(cell, monkeypatch)
    expected = plain(cell).arrays
    assert set(arrays) == set(expected)
    assert all(torch.equal(arrays[name], value) for name, value in expected.items())


def test_the_plain_loops_median_is_the_packages() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 7, 8):
        rows = torch.randn(count, 50, generator=generator)
        weights = torch.randint(1, 4, (count,), generator=generator)
        assert torch.equal(weighted_median(rows, weights), CoordinateWiseMedian()(rows, weights))


@pytest.mark.parametrize(
    ("rule", "attack", "optimizer"),
    [
        ("ctma(rfa)", "little", "mu2"),
        slow("cwmed-unweighted", "empire", "momentum"),
        slow("gm", "none", "sgd"),
        slow("mean", "label_flip", "mu2"),
    ],
)
def test_a_cell_gives_the_same_numbers_twice(rule: str, attack: str, optimizer: str) -> None:
    cell = replace(CELL, rule=rule, attack=attack, optimizer=optimizer)
    first, second = run.run(cell), run.run(cell)
    assert [replace(e, seconds=0) for e in first] == [replace(e, seconds=0) for e in second]
    assert [e.reply for e in first] == [0, 20, 40, 60]
    assert [e.final for e in first] == [False, False, False, True]


def test_a_cell_whose_nodes_all_diverge_ends_and_reports_its_replies() -> None:
    cell = replace(CELL, rule="mean", attack="huge_norm", lr=1e10, model="mlp-bn")
    evaluations = run.run(cell)
    assert evaluations[-1].final and evaluations[-1].reply < 60 and evaluations[-1].accuracy < 0.5


@pytest.mark.slow
def test_liars_ruin_the_mean_and_not_the_median() -> None:
    cell = replace(CELL, attack="sign_flip(scale=4)", replies=600, evaluate_every=600, lr=0.015)
    robust, ruined = (run.run(replace(cell, rule=rule))[-1].accuracy for rule in ("cwmed", "mean"))
    assert robust > 0.8 > 0.3 > ruined


def test_each_arrival_takes_the_next_batch_and_each_epoch_another_order() -> None:
    order = (0, 1, 1, 0, 1, 0)
    stream = Stream.of(examples=8, batch_size=2, seed=3, order=order)
    counts = {0: 0, 1: 0}
    batches = []
    for node in order:
        batches.append(stream.batch(node, counts[node]))
        assert torch.equal(batches[-1], stream.batch(node, counts[node]))  # needed twice by μ²
        counts[node] += 1
    assert sorted(torch.cat(batches[:4]).tolist()) == list(range(8))
    assert torch.cat(batches[4:]).tolist() != torch.cat(batches[:2]).tolist()


def test_the_first_direction_makes_no_step() -> None:
    optimizer = SkipFirstStep(SGD(lr=1.0))
    state = optimizer.init(torch.zeros(1))
    state = optimizer.step(state, torch.ones(1))
    assert (state.x.item(), state.step) == (0.0, 0)
    state = optimizer.step(state, torch.ones(1))
    assert (state.x.item(), state.step) == (-1.0, 1)


# --- which cells ----------------------------------------------------------------------------


@pytest.mark.parametrize("figure", FIGURES)
def test_the_cells_of_a_figure_have_different_names(figure: str) -> None:
    cells = cells_of(figure, [1, 2, 3])
    assert len({cell.name for cell in cells}) == len(cells) > 0
    assert {cell.seed for cell in cells} == {1, 2, 3}
    assert {c.byz_fraction for c in cells if c.attack == "label_flip"} <= {0.3}
    assert {c.byz_fraction for c in cells if c.attack != "label_flip"} == {0.4}


def test_cells_are_filtered_by_any_key_and_several_values_are_or() -> None:
    cells = cells_of("fig2", [1, 2, 3])
    kept = filtered(cells, ["rule=cwmed", "attack=sign_flip", "seed=1", "seed=3"])
    assert [(c.rule, c.attack, c.seed) for c in kept] == [
        ("cwmed", "sign_flip", 1),
        ("cwmed", "sign_flip", 3),
    ]


@pytest.mark.parametrize("only", ["rule=krumm", "colour=red", "rule", "rule=", "seed=9"])
def test_a_filter_without_matches_is_refused_with_the_legal_values(only: str) -> None:
    with pytest.raises(ConfigError, match="must be"):
        filtered(cells_of("fig2", [1]), [only])


# --- the command ----------------------------------------------------------------------------

COMMON = ["--dataset", "digits", "--replies", "40", "--evaluate-every", "20"]
COMMAND = [*COMMON, "--only", "rule=cwmed", "rule=mean", "attack=sign_flip", "--seeds", "1"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fig9", "--out", "OUT"], "fig2"),
        (["fig2", "--out", "OUT", "--dataset", "imagenet"], "fashion-mnist"),
        (["fig2", "--out", "OUT", "--dataset", "mnist", "--data-dir", "/none"], "data-dir"),
        (["fig2", "--out", "OUT", *COMMON, "--only", "rule=krumm"], "cwmed-unweighted"),
        (["fig2", "--out", "OUT", *COMMON, "--only", "attack=nuke"], "label_flip, sign_flip"),
        (["fig2", "--out", "OUT", *COMMON, "--arrivals", "random"], "faithful"),
        (["fig2", "--out", "OUT", *COMMON, "--jobs", "0"], "--jobs"),
        (["fig2", "--out", "OUT", *COMMON, "--seeds", "x"], "--seeds"),
        (["fig2", *COMMON], "--out"),
        (["one", "--out", "OUT", *COMMON, "--rule", "krumm"], "ctma(gm)"),
        (["one", "--out", "OUT", *COMMON, "--attack", "nuke"], "sign_flip"),
        (["one", "--out", "OUT", *COMMON, "--optimizer", "adam"], "mu2"),
        (["one", "--out", "OUT", *COMMON, "--byz-fraction", "0.5"], "[0, 0.5)"),
        (["one", "--out", "OUT", *COMMON, "--byzantine", "18"], "[0, 17]"),
        (["one", "--out", "OUT", *COMMON, "--replies", "50"], "divisor"),
        (["one", "--out", "OUT", *COMMON, "--evaluate-every", "10"], "17 nodes"),
        (["one", "--out", "OUT", *COMMON, "--attack", "flood"], "no time to attack"),
        (["one", "--out", "OUT", *COMMON, "--model", "mlp-bn", "--batch-size", "1"], "batch"),
        (["one", "--out", "OUT", *COMMON, "--seeds", "99999999999999999999"], "seed"),
        (["one", "--out", "", *COMMON], "--out"),
        (["convex", "--out", "OUT", "--only", "rule=krumm"], "cwmed"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2_and_nothing_is_written(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    try:
        code = command.main([str(out) if word == "OUT" else word for word in arguments])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    printed = capsys.readouterr()
    assert code == 2 and printed.out == ""
    assert expected in printed.err and len(printed.err.strip().splitlines()) == 1
    assert not out.exists()


def test_list_prints_the_cells_with_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list", "fig2", "--seeds", "1", "2", "--only", "rule=rfa"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("rule=rfa " in line and "byz_fraction=0." in line for line in lines)


@pytest.mark.slow
def test_the_command_runs_cells_in_processes_and_resumes_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ["fig2", "--out", str(out), "--jobs", "2", *COMMAND]
    assert command.main(arguments) == 0
    text = (out / "results.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert sorted((e["rule"], e["reply"], e["final"]) for e in lines) == [
        (rule, reply, reply == 40) for rule in ("cwmed", "mean") for reply in (0, 20, 40)
    ]
    # Another process, two at a time: the same bits as here.
    planned = command.cells_from(command.parser().parse_args(arguments))
    cell = filtered(planned, ["rule=cwmed", "attack=sign_flip"])[0]
    accuracies = [e["accuracy"] for e in lines if e["cell"] == cell.name]
    assert accuracies == [evaluation.accuracy for evaluation in run.run(cell)]
    with (out / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rule"], row["seeds"], row["deviation"]) for row in rows] == [
        (line["rule"], "1", "") for line in lines if line["final"]
    ]
    assert (out / "fig2.png").read_bytes().startswith(b"\x89PNG")

    # An incomplete line, as after a power failure, costs only its cell.
    (out / "results.jsonl").write_text(text[:-30])
    cut = lines[-1]["rule"]
    again: list[Cell] = []

    def run_here(todo: list[Job], results: Results, jobs: int, finished: int) -> bool:
        assert finished == 2 - len(todo)
        for job in todo:
            again.append(job.cell)
            results.add(job.cell, run.run(job.cell))
        return True

    monkeypatch.setattr(command, "run_all", run_here)
    assert command.main(arguments) == 0
    assert [cell.rule for cell in again] == [cut]
    assert command.main(arguments) == 0
    assert len(again) == 1


@pytest.mark.slow
def test_an_interrupted_reproduction_loses_at_most_the_cells_in_progress(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    words = ["fig2", "--out", str(tmp_path), "--jobs", "1", *COMMON, "--seeds", *"123456789"]
    process = subprocess.Popen(
        [sys.executable, "-m", "apps.paper", *words],
        cwd=ROOT,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 600
    while not (results.exists() and results.read_text().count('"final": true') > 1):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does, to the workers too
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 1 and "goes on" in printed and "Traceback" not in printed
    cells = cells_of("fig2", range(1, 10), "digits", replies=40, evaluate_every=20)  # type: ignore[arg-type]
    left = Results(tmp_path).unfinished(cells)
    assert len(cells) - len(left) == results.read_text().count('"final": true')


@pytest.mark.slow
def test_a_cell_that_fails_does_not_end_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["one", "--out", str(tmp_path), *COMMON, "--seeds", "1", "--batch-size"]
    assert command.main([*words, "100000"]) == 1
    assert "FAILED" in capsys.readouterr().err
    todo = [Job(replace(CELL, batch_size=size)) for size in (100_000, 16)]
    assert not run_all(todo, Results(tmp_path), jobs=1)
    assert [line["batch_size"] for line in Results(tmp_path).entries()] == [16] * 4


def test_the_plain_loop_refuses_other_algorithms() -> None:
    for changes in ({"rule": "gm"}, {"optimizer": "sgd"}, {"attack": "little"}):
        with pytest.raises(ConfigError, match="w-CWMed"):
            plain(replace(CELL, **changes))
