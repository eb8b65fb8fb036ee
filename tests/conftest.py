"""What all tests share: profiles, one thread, default signals, Flower messages outside a task."""

import os
import signal
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import settings

from flwr_byzasync.wire.flower_compat import pretend_task, stamp_message

settings.register_profile("dev", max_examples=20, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("night", max_examples=400, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# Sums are split by the number of threads: with one, results do not depend on the machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _signals() -> Iterator[None]:
    """Python's default SIGINT and SIGTERM handlers, in the tests and in the processes they start.

    A pytest in the background of a script inherits an ignored SIGINT, which the package would
    leave ignored, and every child process would inherit it too.
    """
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _task_identity() -> Iterator[None]:
    """Since flwr 1.38 a Message can only be built inside a task: pretend to be one."""
    with pretend_task(run_id=1, node_id=1):
        yield


@pytest.fixture(scope="session")
def message(_task_identity: None) -> Message:
    """A query that replies can answer."""
    content = RecordDict({"config": ConfigRecord()})
    query = Message(content, dst_node_id=5, message_type="train")
    stamp_message(query, "m", run_id=1, src_node_id=1)
    return query


# --- the summary of a run that leaves tests out ----------------------------------------------

TIERS = ("slow", "deployment")
LEFT_OUT = pytest.StashKey[dict[str, int]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = dict.fromkeys(TIERS, 0)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count what -m leaves out: a call for tests of these tiers only. -k leaves out others too."""
    tiers = [next(filter(item.get_closest_marker, TIERS), None) for item in items]
    if None not in tiers:
        for item, tier in zip(items, tiers, strict=True):
            item.config.stash[LEFT_OUT][tier] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With pytest-xdist each worker collects all tests: send the counts to the controller."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    node.config.stash[LEFT_OUT] |= getattr(node, "workeroutput", {}).get("left_out", {})


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    yield
    counts = terminalreporter.config.stash[LEFT_OUT]
    parts = [f"{count} {tier} (pytest -m {tier})" for tier, count in counts.items() if count]
    if parts:
        terminalreporter.write_line(
            f"Tests left out: {', '.join(parts)}. `.ci/run` runs everything."
        )
