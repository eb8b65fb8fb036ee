"""One faulty client harms no run; what docs/faults.md says is proved by tests that exist."""

import re
from pathlib import Path

import pytest

from apps.benchmarks import faults
from tests.wire.zoo import USABLE, ZOO

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
PROVED = [row for row in ROWS if "::" in row[-1]]


@pytest.mark.parametrize("fault", [*faults.OTHERS, *faults.SPOILS])
def test_no_fault_of_one_client_harms_a_run(fault: str) -> None:
    said = faults.outcome(faults.STRATEGIES["AsyncRobust"](), fault, 12)
    assert said.startswith("unharmed") and "but" not in said
    # The first round waits for every founder; nothing else takes longer than usual.
    assert "a round" not in said or fault == "silent for ever"
    [told] = [row[1] for row in PROVED if row[0] == fault] or [""]
    for reason in re.findall(r"`([A-Z_]+)`", said):
        assert f"`{reason}`" in told


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("NaN", "poisoned: NaN"),
        ("wrong shape", "ends: ValueError"),
        ("another set of metric keys", "ends: InconsistentMessageReplies"),
    ],
)
def test_the_same_faults_do_harm_where_nobody_checks(fault: str, said: str) -> None:
    assert faults.outcome(faults.STRATEGIES["FedAvg"](), fault, 2) == said


@pytest.mark.parametrize("row", PROVED, ids=lambda row: row[0])
def test_a_fault_in_the_docs_names_a_test_that_exists(row: list[str]) -> None:
    name = re.fullmatch(r"`([\w/]+\.py)::(\w+)(?:\[(.+)\])?`", row[-1])
    assert name is not None
    path, test, case = name.groups()
    assert f"def {test}(" in (TESTS / path).read_text(encoding="utf-8")
    assert case is None or case in {**ZOO, **USABLE}


def test_every_fault_that_is_measured_is_in_the_docs() -> None:
    assert {row[0] for row in PROVED if len(row) == 6} == {*faults.OTHERS[1:], *faults.SPOILS}
    assert len(PROVED) > 35
