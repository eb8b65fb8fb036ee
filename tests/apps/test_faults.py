"""One faulty client harms no run; the tests named in docs/faults.md exist."""

import re
from pathlib import Path

import pytest

from apps.benchmarks import faults
from tests.wire.zoo import USABLE, ZOO

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
DOCUMENTED = [row for row in ROWS if "::" in row[-1]]


@pytest.mark.parametrize("fault", [*faults.OTHERS, *faults.SPOILS])
def test_no_fault_of_one_client_harms_a_run(fault: str) -> None:
    outcome = faults.outcome(faults.STRATEGIES["AsyncRobust"](), fault, 12)
    assert outcome.startswith("unharmed") and "but" not in outcome
    # The first round waits for all initial nodes; no other takes longer than usual.
    assert "a round" not in outcome or fault == "silent for ever"
    [documented] = [row[1] for row in DOCUMENTED if row[0] == fault] or [""]
    for reason in re.findall(r"`([A-Z_]+)`", outcome):
        assert f"`{reason}`" in documented


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("NaN", "poisoned: NaN"),
        ("wrong shape", "ends: ValueError"),
        ("another set of metric keys", "ends: InconsistentMessageReplies"),
    ],
)
def test_the_same_faults_harm_a_strategy_without_checks(fault: str, outcome: str) -> None:
    assert faults.outcome(faults.STRATEGIES["FedAvg"](), fault, 2) == outcome


@pytest.mark.parametrize("row", DOCUMENTED, ids=lambda row: row[0])
def test_a_fault_in_the_docs_names_a_test_that_exists(row: list[str]) -> None:
    name = re.fullmatch(r"`([\w/]+\.py)::(\w+)(?:\[(.+)\])?`", row[-1])
    assert name is not None
    path, test, case = name.groups()
    assert f"def {test}(" in (TESTS / path).read_text(encoding="utf-8")
    assert case is None or case in {**ZOO, **USABLE}


def test_every_fault_that_is_measured_is_in_the_docs() -> None:
    assert {row[0] for row in DOCUMENTED if len(row) == 6} == {*faults.OTHERS[1:], *faults.SPOILS}
    assert len(DOCUMENTED) > 35
