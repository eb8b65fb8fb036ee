"""The command `byzasync`: what it prints, what it writes, and how it ends."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flwr_byzasync import __version__
from flwr_byzasync.aggregators import discover
from flwr_byzasync.cli import main

ROOT = Path(__file__).parents[2]
FEW = ["--evaluations", "300"]
OWN_RULES = '''
"""Rules of a third party: a function, and a class with λ that promises too much."""

from dataclasses import dataclass


def lowest(rows, weights):
    return rows[weights > 0].min(dim=0).values


@dataclass
class Trusting:
    byz_fraction: float

    def __call__(self, rows, weights):
        return (weights.double() @ rows.double()) / weights.sum()

    def bound(self, lam):
        return 1.0 + self.byz_fraction


settings = 3


def sorts(rows, weights):
    rows.numpy().sort(axis=0)
    return rows[len(rows) // 2].clone()


def raises(rows, weights):
    raise KeyError("mine")


def lists(rows, weights):
    return rows[0].tolist()


def shorter(rows, weights):
    return rows[0][:0]


def whole(rows, weights):
    return rows[0].long()


def nowhere(rows, weights):
    return rows[0] * float("nan")


class Picky:
    def __init__(self, power):
        self.power = power


@dataclass
class Vague:
    byz_fraction: float
    constant = float("nan")

    def __call__(self, rows, weights):
        return rows[0]

    def bound(self, lam):
        return self.constant


@dataclass
class Broken(Vague):
    def bound(self, lam):
        return 1 / 0
'''


@pytest.fixture
def own_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rules_of_mine.py").write_text(OWN_RULES, encoding="utf-8")
    (tmp_path / "broken_of_mine.py").write_text("def f(:", encoding="utf-8")
    (tmp_path / "ending_of_mine.py").write_text("raise SystemExit(3)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "rules_of_mine", raising=False)
    return tmp_path


def ended(*arguments: str) -> int:
    """Run and return the exit code, however the command ends."""
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


# --- telling -------------------------------------------------------------------------------------
def test_a_table_has_a_row_for_each_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("audit", "cwmed", "--lam", "0.1", "0.4", *FEW) == 0
    out = capsys.readouterr().out
    assert out.startswith("cwmed: up to 5 rows, 300 calls per λ, seed 1\n")
    numbers = [line.split() for line in out.splitlines() if re.match(r" *0\.", line)]
    assert [line[0] for line in numbers] == ["0.1", "0.4"]
    assert [line[1:3] for line in numbers] == [["1.266", "1.25"], ["9", "5"]]
    assert [line[5] for line in numbers] == ["0.125", "2"]
    assert all(0.5 <= float(line[3]) / float(line[2]) <= 1 for line in numbers)


def test_the_same_command_prints_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    prints = []
    for seed in ("7", "7", "8"):
        assert ended("audit", "cwmed", "--show", "--seed", seed, *FEW) == 0
        prints.append(capsys.readouterr().out)
    assert prints[0] == prints[1] != prints[2]


def test_a_table_in_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("audit", "trimmed_mean", "--lam", "0.25", "--table", *FEW) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.count("|") for line in lines] == [7, 7, 7]
    assert lines[1] == "| --- | --- | --- | --- | --- | --- |"


def test_a_rule_without_a_constant_is_reported_with_a_counterexample(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended("audit", "mean", "--lam", "0.1", *FEW) == 0
    out = capsys.readouterr().out
    assert "unbounded" in out and "λ = 0.1: no constant: ratio inf" in out
    assert re.search(
        r"rows    \[\[.*\n  weights \[.*\n  G       \[.*0\.9 of the weight\n  result  \[", out
    )


def test_worst_cases_are_shown_where_they_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended("audit", "cwmed", "--lam", "0.1", *FEW) == 0
    assert "weights" not in capsys.readouterr().out
    assert ended("audit", "cwmed", "--lam", "0.1", "--show", *FEW) == 0
    assert "weights" in capsys.readouterr().out


def test_a_share_that_is_not_legal_for_a_rule_is_skipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended("audit", "bulyan", "--lam", "0.1", "0.4", *FEW) == 0
    out = capsys.readouterr().out
    assert "λ = 0.4 is skipped: byz_fraction=0.4 is not legal" in out
    assert len(re.findall(r"^ *0\.", out, re.M)) == 1


def test_every_rule_of_the_package_is_in_the_table_of_all(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = ["--lam", "0.2", "--evaluations", "100", "--out", str(tmp_path)]
    assert ended("audit", "--all", *few) in (0, 1)
    out = capsys.readouterr().out
    assert set(re.findall(r"^\| `(\w+)", out, re.M)) == set(discover())
    assert "| `ctma(gm)` |" in out and "| `ctma(cwmed)` |" in out
    assert (tmp_path / "audit.md").read_text(encoding="utf-8") == out


# --- curves --------------------------------------------------------------------------------------
def test_a_curve_is_drawn_as_text_and_as_a_figure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    arguments = ["--curve", "--out", str(folder), "--evaluations", "100"]
    assert ended("audit", "cwmed", *arguments) == 0
    bars = [
        line[6:] for line in capsys.readouterr().out.splitlines() if re.match(r" *0\.\d+ +f", line)
    ]
    assert len(bars) == 9
    assert [bar.index("f") for bar in bars] == sorted(bar.index("f") for bar in bars)
    assert (folder / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "audit.md").read_text(encoding="utf-8").count("\n| 0.") == 9


def test_without_matplotlib_one_sentence_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["--curve", "--out", str(tmp_path), "--evaluations", "100"]
    assert ended("audit", "mean", *arguments) == 0
    assert "No audit.png: matplotlib is not installed" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["audit.md"]


# --- rules of others -----------------------------------------------------------------------------
def test_a_broken_bound_ends_with_code_1_and_the_counterexample(
    own_rules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("audit", "rules_of_mine:Trusting", "--lam", "0.2", *FEW) == 1
    out = capsys.readouterr().out
    assert "is above the stated 1.2 at\n  rows" in out


def test_a_function_is_a_rule(own_rules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("audit", "rules_of_mine:lowest", "--lam", "0.2", *FEW) == 0
    assert "no constant" in capsys.readouterr().out


def test_a_result_that_is_not_finite_is_reported_as_such(
    own_rules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("audit", "rules_of_mine:nowhere", "--lam", "0.2", *FEW) == 0
    assert "(the result is not finite)" in capsys.readouterr().out


# --- usage ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["audit", "nope"], "aggregator='nope' is not legal"),
        (["audit", "cwmed", "--lam", "0.1", "0.5"], "lam=0.5 is not legal"),
        (["audit", "cwmed", "--lam", "many"], "invalid float value: 'many'"),
        (["audit", "cwmed", "--rows", "1"], "rows=1 is not legal"),
        (["audit", "cwmed", "--evaluations", "3"], "evaluations=3 is not legal"),
        (["audit", "bulyan", "--lam", "0.4"], "byz_fraction=0.4 is not legal"),
        (["audit"], "one of the arguments RULE --all is required"),
        (["audit", "cwmed", "--all"], "not allowed with argument"),
        (["audit", "no_such_module:x"], "No module named 'no_such_module'"),
        (["audit", "rules_of_mine:x"], "has no attribute 'x'"),
        (["audit", "rules_of_mine:settings"], "3 is not a callable object"),
        ([], "the following arguments are required: COMMAND"),
        (["audit", "rules_of_mine:sorts"], "is not a valid rule: it wrote to its inputs"),
        (["audit", "rules_of_mine:raises"], "is not a valid rule: it raised KeyError: 'mine' for"),
        (["audit", "rules_of_mine:lists"], "is not a valid rule: it returned list, not a tensor"),
        (["audit", "rules_of_mine:shorter"], "it returned (0,) torch.float64 instead of ("),
        (["audit", "rules_of_mine:whole"], "torch.int64 instead of ("),
        (
            ["audit", "rules_of_mine:Picky"],
            "a rule that can be built at λ = 0.1; correct it (Type",
        ),
        (["audit", "rules_of_mine:Vague"], "bound(lam)=nan is not legal: it must be a number >= 0"),
        (["audit", "rules_of_mine:Broken"], "bound(0.1) raised ZeroDivisionError: division by"),
        (["audit", "broken_of_mine:x"], "SyntaxError"),
        (["audit", "ending_of_mine:x"], "SystemExit: 3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_of_usage_is_one_sentence_and_code_2(
    arguments: list[str], sentence: str, own_rules: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("byzasync: ") and sentence in err
    assert err.endswith(".\n") and err.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_an_error_of_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert ended("audit", "cwmed", "--lam", "0.1", "--out", str(tmp_path / "file"), *FEW) == 2
    assert (
        "is not legal: it must be a folder that exists or can be created" in capsys.readouterr().err
    )


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"byzasync {__version__}\n"
    assert ended("audit", "--help") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("RULE", "--all", "--curve", "--lam", "Exit code 1"))


@pytest.mark.slow
def test_it_needs_neither_hypothesis_nor_matplotlib() -> None:
    code = (
        "import sys; sys.modules.update({'hypothesis': None, 'matplotlib': None}); "
        "from flwr_byzasync.cli import main; "
        "sys.exit(main(['audit', 'cwmed', '--evaluations', '100', '--lam', '0.1']))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=120)
    assert run.returncode == 0 and b"1.25" in run.stdout
