"""Rules by name: discovery, the meaning of specs, and the errors of illegal ones."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flwr_byzasync import ConfigError, aggregators
from flwr_byzasync.aggregators import (
    CTMA,
    RFA,
    Aggregator,
    CoordinateWiseMedian,
    GeometricMedian,
    Law,
    Mean,
    RuleInfo,
    WeightedRule,
    build,
    discover,
)
from flwr_byzasync.aggregators.unweighted import Unweighted
from tests.generators import every_rule

FOLDER = Path(aggregators.__file__).parent


def declares_rule(node: ast.AST) -> bool:
    """Whether a class body gives INFO a value."""
    return isinstance(node, ast.ClassDef) and any(
        isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == "INFO" and line.value
        for line in node.body
    )


# --- discover ----------------------------------------------------------------------------------
def test_discover_finds_every_file_that_declares_a_rule() -> None:
    classes = {
        node.name
        for file in FOLDER.glob("*.py")
        for node in ast.parse(file.read_text()).body
        if declares_rule(node) and file.name != "unweighted.py"
    }
    assert len(classes) >= 5
    assert {rule.__name__ for rule in discover().values()} == classes


def test_discover_finds_the_rules_that_scripts_use() -> None:
    named = {
        "mean": Mean,
        "cwmed": CoordinateWiseMedian,
        "gm": GeometricMedian,
        "rfa": RFA,
        "ctma": CTMA,
    }
    assert named.items() <= discover().items()


def test_discover_is_read_only_and_sorted() -> None:
    with pytest.raises(TypeError):
        discover()["mine"] = Mean  # type: ignore[index]
    assert list(discover()) == sorted(discover())


@pytest.mark.parametrize("name", discover())
def test_every_declaration_is_complete(name: str) -> None:
    declared = discover()[name].INFO
    assert isinstance(declared, RuleInfo) and declared.name == name
    assert declared.laws <= set(Law) and declared.sources


NEW_FILE = """
from dataclasses import dataclass
from typing import ClassVar
from flwr_byzasync.aggregators.mean import Mean
from flwr_byzasync.aggregators.rule import RuleInfo, WeightedRule

@dataclass(frozen=True)
class Added(WeightedRule):
    INFO: ClassVar[RuleInfo] = RuleInfo("NAME", laws=frozenset(), bound=None, sources=("here",))

    def aggregate(self, rows, weights):
        return Mean().aggregate(rows, weights)
"""


@pytest.fixture
def new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files count as files of the package."""
    monkeypatch.setattr(aggregators, "__path__", [*aggregators.__path__, str(tmp_path)])
    discover.cache_clear()
    yield tmp_path
    discover.cache_clear()
    sys.modules.pop("flwr_byzasync.aggregators.added", None)
    vars(aggregators).pop("added", None)


def test_a_new_file_is_a_new_rule(new_folder: Path) -> None:
    (new_folder / "added.py").write_text(NEW_FILE.replace("NAME", "added"))
    assert "added" in discover()
    assert float(build("ctma(added)", 0.2)(torch.tensor([[2.0]]), torch.tensor([1]))) == 2.0


def test_two_rules_of_one_name_are_refused(new_folder: Path) -> None:
    (new_folder / "added.py").write_text(NEW_FILE.replace("NAME", "gm"))
    with pytest.raises(RuntimeError, match="are named 'gm'"):
        discover()


# --- build -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("mean", Mean()),
        ("cwmed", CoordinateWiseMedian()),
        ("gm", GeometricMedian()),
        ("rfa", RFA(iterations=3, nu=1e-6)),
        ("ctma(gm)", CTMA(GeometricMedian(), byz_fraction=0.2)),
        (" ctma ( cwmed )\n", CTMA(CoordinateWiseMedian(), byz_fraction=0.2)),
        ("ctma(ctma(rfa))", CTMA(CTMA(RFA(), byz_fraction=0.2), byz_fraction=0.2)),
        ("gm-unweighted", Unweighted(GeometricMedian())),
        ("ctma(gm)-unweighted", Unweighted(CTMA(GeometricMedian(), byz_fraction=0.2))),
        ("ctma(gm-unweighted)", CTMA(Unweighted(GeometricMedian()), byz_fraction=0.2)),
        ("rfa(iterations=5)", RFA(iterations=5)),
        ("rfa ( nu = 1e-3, iterations = 7 )", RFA(iterations=7, nu=1e-3)),
        ("rfa()-unweighted", Unweighted(RFA())),
        ("ctma(rfa(nu=2)-unweighted)", CTMA(Unweighted(RFA(nu=2)), byz_fraction=0.2)),
        ("ctma(gm, byz_fraction=0.1)", CTMA(GeometricMedian(), byz_fraction=0.1)),
        ("ctma(gm,byz_fraction=0)-unweighted", Unweighted(CTMA(GeometricMedian(), 0))),
        # What is written for one rule says nothing about its base.
        ("ctma(ctma(gm), byz_fraction=0.1)", CTMA(CTMA(GeometricMedian(), 0.2), 0.1)),
        ("ctma(ctma(gm, byz_fraction=0.1))", CTMA(CTMA(GeometricMedian(), 0.1), 0.2)),
    ],
)
def test_build_reads_names_and_compositions(text: str, rule: Aggregator) -> None:
    assert build(text, byz_fraction=0.2) == rule


def test_rules_are_frozen_and_equal_when_their_settings_are() -> None:
    for name in every_rule():
        rule = build(name, 0.2)
        assert rule == build(name, 0.2) and hash(rule) == hash(build(name, 0.2)), name
        with pytest.raises(AttributeError):
            rule.INFO = None  # type: ignore[attr-defined]


def test_unweighted_gives_each_row_that_counts_the_weight_one() -> None:
    rows, weights = torch.tensor([[0.0], [6.0], [99.0], [3.0]]), torch.tensor([9, 1, 0, 1])
    assert float(build("mean-unweighted", 0.2)(rows, weights)) == 3.0
    assert float(build("cwmed-unweighted", 0.2)(rows, weights.double() / 7)) == 3.0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("median", "aggregator='median' is not legal: it must be one of .*ctma, cwmed, .*gm, "),
        ("", "aggregator='' is not legal: it must be one of"),
        ("ctma(gm", r"aggregator='ctma\(gm' is not legal: it must be one of"),
        ("ctma(what)", "aggregator='what' is not legal: it must be one of"),
        ("ctma(gm)(gm)", "is not legal: it must be one of"),
        ("ctma(3)", "aggregator='3' is not legal: it must be one of"),
        ("ctma(*gm)", r"aggregator='\*gm' is not legal: it must be one of"),
        ("gm-weighted", "aggregator='gm-weighted' is not legal: it must be one of"),
        ("gm-unweighted-unweighted", "is not legal: it must be one of"),
        ("(gm+gm)-unweighted", "is not legal: it must be one of"),
        ("gm+unweighted", r"aggregator='gm\+unweighted' is not legal: it must be one of"),
        ("unweighted(gm)", r"aggregator='unweighted\(gm\)' is not legal: it must be one of"),
        ("ctma", "aggregator='ctma' is not legal: it must be ctma with a base in brackets"),
        ("ctma()", r"'ctma\(\)' is not legal: it must be ctma with a base in brackets"),
        ("ctma(gm, gm)", "it must be ctma with a base in brackets, followed by settings among"),
        ("ctma(base=gm)", "it must be ctma with a base in brackets, followed by settings"),
        ("ctma(gm, seed=3)", "settings among byz_fraction, each once, as name=value"),
        ("ctma(**gm)", "settings among byz_fraction, each once, as name=value"),
        ("gm(mean)", r"aggregator='gm\(mean\)' is not legal: it must be gm without brackets"),
        ("gm(steps=3)", "it must be gm without brackets"),
        ("rfa(5)", "must be rfa, alone or with settings among iterations, nu, each once"),
        ("rfa(nu=1, nu=2)", "must be rfa, alone or with settings among iterations, nu, each once"),
        ("rfa(nu=small)", "aggregator='small' is not legal: it must be rfa with a number, true,"),
        ("rfa(nu='1')", "it must be rfa with a number, true, false or none for nu"),
        ("rfa(nu=1j)", "aggregator='1j' is not legal: it must be rfa with a number, true,"),
        ("rfa(nu=[1])", "it must be rfa with a number, true, false or none for nu"),
        ("rfa(nu=exit())", "it must be rfa with a number, true, false or none for nu"),
        (f"rfa(nu={'-' * 900}1)", "it must be rfa with a number, true, false or none for nu"),
        ("rfa" * 400, "is not legal: it must be one of"),
        ("(" * 900, "is not legal: it must be one of"),
        ("gm\0", "is not legal: it must be one of"),
        (None, "aggregator=None is not legal: it must be one of"),
        (3, "aggregator=3 is not legal: it must be one of"),
    ],
)
def test_build_says_what_is_wrong_with_a_name(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        build(text, byz_fraction=0.2)
    assert caught.value.argument == "aggregator"
    assert str(caught.value).endswith("'cwmed', 'ctma(gm)' or 'rfa(iterations=5)'.")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rfa(iterations=0)", "^iterations=0 is not legal: it must be an integer >= 1"),
        ("rfa(iterations=true)", "^iterations=True is not legal"),
        ("rfa(nu=none)", "^nu=None is not legal"),
        ("rfa(nu=-1e-6)", "^nu=-1e-06 is not legal"),
        ("ctma(gm, byz_fraction=0.5)", "^byz_fraction=0.5 is not legal"),
        ("ctma(gm, byz_fraction=none)", "^byz_fraction=None is not legal"),
    ],
)
def test_a_setting_that_is_not_legal_is_named(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build(text, byz_fraction=0.2)


ILLEGAL = [-0.1, 0.5, 0.7, 1, float("nan"), float("inf"), True, False, "0.2"]


@pytest.mark.parametrize("lam", ILLEGAL, ids=repr)
def test_a_byzantine_share_outside_zero_and_a_half_is_refused(lam: float) -> None:
    for name in every_rule():
        with pytest.raises(ConfigError, match=r"^byz_fraction=.* must be a number in \[0, 0.5\)"):
            build(name, byz_fraction=lam)


@pytest.mark.parametrize("lam", [*ILLEGAL, None], ids=repr)
def test_ctma_refuses_the_same_shares(lam: float) -> None:
    with pytest.raises(ConfigError, match=r"^byz_fraction=.* must be a number in \[0, 0.5\)"):
        CTMA(GeometricMedian(), byz_fraction=lam)


@pytest.mark.parametrize("lam", [0, 0.0, 0.25, 0.4999])
def test_a_byzantine_share_of_zero_up_to_a_half_is_taken(lam: float) -> None:
    assert build("ctma(gm)", byz_fraction=lam) == CTMA(GeometricMedian(), byz_fraction=lam)


def test_only_rules_that_have_the_field_need_a_byzantine_share() -> None:
    assert build("gm") == GeometricMedian()
    assert build("ctma(gm, byz_fraction=0.2)") == build("ctma(gm)", byz_fraction=0.2)
    with pytest.raises(ConfigError, match="ctma with byz_fraction; write it as name=value") as said:
        build("ctma(gm)")
    assert said.value.argument == "aggregator"


# --- constructors ------------------------------------------------------------------------------
@pytest.mark.parametrize("iterations", [0, -1, 2.0, 1.5, True, "3", None], ids=repr)
def test_rfa_takes_one_step_or_more(iterations: int) -> None:
    with pytest.raises(ConfigError, match=r"^iterations=.* must be an integer >= 1; pass for"):
        RFA(iterations=iterations)


@pytest.mark.parametrize("nu", [0.0, -1e-6, float("nan"), float("inf"), True, "1", None], ids=repr)
def test_rfa_takes_a_positive_smallest_distance(nu: float) -> None:
    with pytest.raises(ConfigError, match=r"^nu=.* must be a number in \(0, inf\); pass for"):
        RFA(nu=nu)


@pytest.mark.parametrize("base", [None, "gm", 3])
def test_ctma_takes_a_rule_as_its_base(base: Aggregator) -> None:
    with pytest.raises(ConfigError, match=r"^base=.* must be a rule, called as rule"):
        CTMA(base, byz_fraction=0.2)


def test_ctma_takes_a_third_partys_function_as_its_base() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    rule = CTMA(lambda x, _: x.amin(dim=0), byz_fraction=0.25)
    assert rule(rows, torch.ones(4)).tolist() == [1.0]
    assert rule.laws == frozenset() and rule.bound(0.1) is None


def test_a_rule_without_aggregate_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="aggregate"):
        WeightedRule()  # type: ignore[abstract]
