"""The sensitivity study: its cells, its command, resuming and tables."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from apps.paper import __main__ as command
from apps.paper import heatmap, run, sensitivity
from apps.paper.cells import NO_ATTACK, Cell
from apps.paper.jobs import Job
from apps.paper.nodes import batches_of
from apps.paper.results import Results
from apps.paper.sensitivity_report import Grid, markdown
from flwr_byzasync import ConfigError, aggregators, attacks
from flwr_byzasync.simulation import PaperArrivals

STRONG = "sign_flip(scale=4)"
WORDS = ["--rules", "mean", "cwmed", "--attacks", STRONG, "zero", "--partitions", "iid"]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """Run cells in this process, and return their list."""
    cells: list[Cell] = []

    def run_here(todo: list[Job], results: Results, jobs: int, finished: int) -> bool:
        for job in todo:
            cells.append(job.cell)
            results.add(job.cell, run.run(job.cell))
        return True

    monkeypatch.setattr(sensitivity, "run_all", run_here)
    return cells


def study(out: Path, *words: str, replies: int = 200) -> int:
    return command.main(
        ["sensitivity", *WORDS, "--replies", str(replies), "--out", str(out), *words]
    )


# --- its cells -----------------------------------------------------------------------------


def test_every_rule_is_in_the_study_and_meta_rules_are_over_the_median() -> None:
    rules = sensitivity.all_rules()
    assert {rule.split("(")[0].removesuffix("-unweighted") for rule in rules} == set(
        aggregators.discover()
    )
    assert rules[0] == "mean" and "ctma(cwmed)" in rules and len(set(rules)) == len(rules)


def test_every_attack_is_in_the_study_except_delays_and_values_that_are_not_finite() -> None:
    listed = {attack.split("(")[0] for attack in sensitivity.all_attacks()}
    assert set(attacks.discover()) - listed == {"flood", "slow_down", "inf", "nan"}


@pytest.mark.parametrize("rule", sensitivity.all_rules())
def test_no_rule_trusts_a_byzantine_node(rule: str) -> None:
    cell = sensitivity.cell_of(rule, NO_ATTACK, "iid", seed=1, replies=100)
    built = aggregators.build(rule, cell.rule_fraction)
    assert all(row >= cell.byzantine for row in getattr(built, "trusted", ()))


def test_the_byzantine_share_is_lambda_and_never_exceeds_that_of_the_rules() -> None:
    cell = sensitivity.cell_of("mean", NO_ATTACK, "iid", seed=1, replies=400)
    order = run.arrivals_of(cell).order(cell.replies)
    assert isinstance(run.arrivals_of(cell), PaperArrivals) and sorted(order[:9]) == list(range(9))
    shares = [
        sum(node < cell.byzantine for node in order[:count]) / count
        for count in range(cell.nodes, cell.replies + 1)
    ]
    assert max(shares) <= cell.rule_fraction and shares[-1] == pytest.approx(0.4, abs=0.003)


def test_a_rule_gets_the_largest_share_that_it_accepts() -> None:
    assert (
        sensitivity.accepted_fraction("cwmed")
        == sensitivity.accepted_fraction("ctma(cwmed)")
        == 0.45
    )
    with pytest.raises(ConfigError, match="krumm"):
        sensitivity.accepted_fraction("krumm")


@pytest.mark.parametrize("partition", ["iid", "dirichlet(0.5)"])
def test_nodes_train_on_separate_examples(partition: str) -> None:
    cell = sensitivity.cell_of("mean", NO_ATTACK, partition, seed=1, replies=100)
    batches = batches_of(cell, torch.arange(900) % 10, order=())
    drawn = [
        {int(example) for count in range(50) for example in batches.batch(node, count)}
        for node in range(cell.nodes)
    ]
    assert sum(len(own) for own in drawn) == len(set().union(*drawn)) > 400
    assert torch.equal(batches.batch(0, 7), batches.batch(0, 7))  # needed twice by μ²
    assert not torch.equal(batches.batch(0, 7), batches.batch(0, 8))


# --- the command ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_strong_attack_ruins_the_mean_and_not_the_median_and_the_study_resumes(
    tmp_path: Path, ran: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(tmp_path) == 0
    assert [(cell.attack, cell.rule) for cell in ran] == [
        (attack, rule) for attack in (NO_ATTACK, STRONG, "zero") for rule in ("mean", "cwmed")
    ]
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "sensitivity.json").read_text())
    accuracy = {(row["rule"], row["attack"]): row["accuracy"] for row in rows}
    assert len(rows) == 6
    assert accuracy["mean", NO_ATTACK] > 0.7 and accuracy["cwmed", NO_ATTACK] > 0.7
    assert accuracy["mean", STRONG] < 0.2 < 0.4 < accuracy["cwmed", STRONG]
    table = [line for line in printed.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1] for line in table] == ["cwmed", "mean"]  # the better one first
    assert "6 of 6 cells" in printed and f"`{STRONG}`" in table[1]
    assert (tmp_path / "sensitivity.md").read_text().strip() == printed.strip()
    assert (tmp_path / "sensitivity-iid.png").read_bytes().startswith(b"\x89PNG")

    # Again: nothing is run. With one more attack: its cells alone. --show: nothing, same table.
    del ran[:]
    assert study(tmp_path) == 0 and not ran
    capsys.readouterr()
    assert study(tmp_path, "--show") == 0 and not ran
    assert capsys.readouterr().out == printed
    words = ["--attacks", STRONG, "zero", "empire", "--show"]
    assert study(tmp_path, *words) == 0 and not ran
    assert "6 of 8 cells" in capsys.readouterr().out


def test_show_reports_that_no_cell_is_finished(
    tmp_path: Path, ran: list[Cell], capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(tmp_path, "--show") == 1 and not ran
    assert capsys.readouterr().err.splitlines() == ["No cell is finished."]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--rules", "krumm"], "krumm"),
        (["--rules", "ctma"], "ctma"),
        (["--attacks", "nuke"], "sign_flip"),
        (["--attacks", "flood"], "no time to attack"),
        (["--attacks", "nan"], "accepted"),
        (["--partitions", "dirichlet"], "dirichlet(ALPHA)"),
        (["--replies", "9"], "9 nodes"),
        (["--seeds", "-1"], "seed"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert study(out, *words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and expected in printed.err and len(printed.err.splitlines()) == 1
    assert not out.exists()


# --- tables ---------------------------------------------------------------------------------

CELL = sensitivity.cell_of("mean", NO_ATTACK, "dirichlet(0.5)", seed=1, replies=400)
GRID = Grid(
    setting={**vars(CELL), "seeds": 2},
    fractions={"mean": 0.45, "bulyan": 0.24, "gm": 0.45},
    attacks=("little", "zero"),
    accuracy={
        ("mean", NO_ATTACK): 0.9,
        ("mean", "little"): 0.1,
        ("mean", "zero"): 0.8,
        ("bulyan", NO_ATTACK): 0.75,
        ("bulyan", "zero"): 0.6,
        ("gm", NO_ATTACK): 0.92,
    },
    total=9,
)


def test_a_table_has_the_constant_the_worst_attack_the_cost_and_a_mark_for_a_smaller_share() -> (
    None
):
    lines = markdown([GRID]).splitlines()
    assert lines[0].startswith("digits, dirichlet(0.5), 9 nodes, 4 of them liars with 0.4 of")
    assert lines[0].endswith("2 seeds; 6 of 9 cells are finished.")
    assert lines[4:] == [
        "| `bulyan`, told 0.24 | none | 0.750 | 0.600 | `zero` | 0.150 |",
        "| `mean` | none | 0.900 | 0.100 | `little` | 0.000 |",
        "| `gm` | 10 | 0.920 |  |  | -0.020 |",
    ]


def test_a_heat_map_begins_with_clean_accuracy_and_ends_with_the_worst(tmp_path: Path) -> None:
    values = heatmap.matrix_of(GRID)
    assert values[1].tolist() == [0.9, 0.1, 0.8, 0.1]
    assert values[0, [0, 2, 3]].tolist() == [0.75, 0.6, 0.6]
    assert int((values != values).sum()) == 1 + 3  # unfinished cells stay empty
    heatmap.draw(GRID, tmp_path / heatmap.name_of(GRID))
    assert (tmp_path / "sensitivity-dirichlet-0.5.png").stat().st_size > 10_000


def test_cells_without_the_added_fields_keep_their_name() -> None:
    old = replace(CELL, partition="shared", told=-1.0)
    assert (
        old.name == "2ac8b27a2948" and len({old.name, CELL.name, replace(old, told=0.45).name}) == 3
    )
