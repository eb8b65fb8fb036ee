"""The test suite: it passes however it is started, and says what it leaves out."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_pytest(*arguments: str, before: str = "", returns: int = 0) -> str:
    """Run pytest in a shell of its own, after other commands, and return what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        ["sh", "-c", f'{before} exec "$@"', "sh", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == returns, done.stdout
    return done.stdout


@pytest.mark.slow
def test_signals_reach_the_tests_of_a_pytest_that_was_started_with_sigint_ignored() -> None:
    test = "tests/checkpoints/test_resume.py::test_the_same_nodes_in_a_new_run_are_queried_again"
    assert "1 passed" in run_pytest(test, before="trap '' INT;")


@pytest.mark.slow
def test_only_a_run_that_leaves_tests_out_says_how_to_run_them() -> None:
    options = ["--collect-only", "-q", __file__, "tests/deployment"]
    assert re.search(
        r"^Tests left out: \d+ slow \(pytest -m slow\), "
        r"\d+ deployment \(pytest -m deployment\)\. `\.ci/run` runs everything\.$",
        run_pytest(*options, returns=5),
        re.MULTILINE,
    )
    assert "Tests left out" not in run_pytest(*options, "-m", "")
