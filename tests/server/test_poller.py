"""A reply that is never uploaded in full delays its own node, and nobody else."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict

from flwr_byzasync import AsyncRobust, Gradient, Reason, VirtualGrid, client_app
from flwr_byzasync._clock import clock_of
from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.checkpoints.files import Checkpoints
from flwr_byzasync.estimators import sgd
from flwr_byzasync.optimizers import SGD
from flwr_byzasync.server import poller as poller_module
from flwr_byzasync.server.poller import MAX_HANGING_PULLS, PASS_TIMEOUT, ReplyPoller
from tests.fakes import FakeClock, FakeGrid, FakeNode, reply_to
from tests.settings import grouped

START = {"w": torch.tensor([4.0, -4.0])}
HANGING = 3


@dataclass
class HangingGrid(FakeGrid):
    """A grid without a clock of its own, where the pulls of some messages hang.

    `messages` are the indices of the node's messages whose pulls hang, for `seconds` at most.
    """

    node: int = HANGING
    messages: range = range(10**6)
    seconds: float = 60.0
    released: threading.Event = field(default_factory=threading.Event)
    hung: dict[str, threading.Thread] = field(default_factory=dict)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        [key] = message_ids
        if key in [each.metadata.message_id for each in self.to(self.node)[self._slice]]:
            self.hung[key] = threading.current_thread()
            assert self.released.wait(self.seconds)
        return super().pull_messages([key])

    @property
    def _slice(self) -> slice:
        return slice(self.messages.start, self.messages.stop)

    def to(self, node: int) -> list[Message]:
        return [each for each in self.sent if each.metadata.dst_node_id == node]

    def release(self) -> None:
        """Let all pulls that hang end, and wait until they have."""
        self.released.set()
        for thread in self.hung.values():
            thread.join(60)


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pulls run in threads, as on a grid without a clock of its own."""
    own, real = poller_module.clock_of, (time.monotonic, time.sleep)
    monkeypatch.setattr(
        poller_module, "clock_of", lambda grid: real if isinstance(grid, FakeGrid) else own(grid)
    )


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingGrid]:
    """Three honest nodes; the pulls of the last one's messages hang.

    Pulls are waited for until they end or hang, however slow the machine is.
    """
    made = HangingGrid(FakeClock(), {node: FakeNode(honest, 1.0) for node in (1, 2, HANGING)})
    known: list[threading.Thread] = []

    def until_it_ends_or_hangs(futures: list[Future[Any]], timeout: float) -> None:
        nonlocal known
        while not futures[0].done() and list(made.hung.values()) == known:
            wait(futures, timeout=0.001)
        known = list(made.hung.values())

    monkeypatch.setattr(poller_module, "wait", until_it_ends_or_hangs)
    yield made
    made.release()


def honest(message: Message) -> RecordDict:
    """The gradient of ‖x‖²/2 is x: training drives the model to 0."""
    return reply_to(message)


def strategy_on(grid: FakeGrid, **settings: Any) -> AsyncRobust:
    settings = {"nodes": 2, "reply_timeout": 5.0, "updates_per_round": 60, **settings}
    return AsyncRobust(CoordinateWiseMedian(), SGD(0.1), **grouped(**settings))


def final(result: Any) -> torch.Tensor:
    return result.arrays.to_torch_state_dict()["w"]


# --- runs ----------------------------------------------------------------------------------------


def test_a_reply_that_is_never_uploaded_to_its_end_stalls_nobody_else(
    grid: HangingGrid, tmp_path: Path
) -> None:
    strategy = strategy_on(grid, checkpoints=Checkpoints(tmp_path, None, 5.0, keep=100))
    result = strategy.start(grid, ArrayRecord(START), 1)
    assert strategy.statistics().replies == {1: 30, 2: 30, HANGING: 0}
    assert float(final(result).norm()) < 0.1
    # It timed out and was queried again, as a silent node is; every checkpoint but the last was
    # written between two replies while its pull hung, as it still does.
    assert strategy.statistics().reasons == {Reason.EXPIRED: 3}
    assert len(grid.to(HANGING)) == len(grid.hung) == 3
    assert all(thread.is_alive() for thread in grid.hung.values())
    assert len(Checkpoints(tmp_path).paths()) >= 5


def test_a_reply_that_takes_long_to_download_counts_once_it_is_there(grid: HangingGrid) -> None:
    def release_after_25_queries(message: Message) -> bool:
        if len(grid.sent) == 25:
            grid.release()
        return True

    grid.on_push, grid.messages = release_after_25_queries, range(1)
    strategy = strategy_on(grid, reply_timeout=60.0)
    strategy.start(grid, ArrayRecord(START), 1)
    statistics = strategy.statistics()
    assert statistics.reasons == {} and statistics.accepted == 60
    assert 10 <= statistics.replies[HANGING] < statistics.replies[1]
    # The first reply counted too: every reply was used, and no query was repeated.
    assert len(grid.to(HANGING)) - statistics.replies[HANGING] in (0, 1)


def test_a_pull_that_ends_after_its_query_was_replaced_changes_no_bit(
    grid: HangingGrid,
) -> None:
    def release_once_replaced(message: Message) -> bool:
        if len(grid.to(HANGING)) == 2:
            grid.release()
        return True

    grid.on_push, grid.messages = release_once_replaced, range(1)
    strategy = strategy_on(grid)
    reached = final(strategy.start(grid, ArrayRecord(START), 1))

    silent_once = iter([True])
    behaviours = {
        1: honest, 2: honest,
        HANGING: lambda m: None if next(silent_once, False) else honest(m),
    }  # fmt: skip
    other = FakeGrid(FakeClock(), {n: FakeNode(b, 1.0) for n, b in behaviours.items()})
    silent = strategy_on(other)
    assert torch.equal(reached, final(silent.start(other, ArrayRecord(START), 1)))
    assert strategy.statistics() == silent.statistics()
    assert strategy.statistics().replies[HANGING] > 0
    assert len(grid.hung) == 1 and "m2" not in grid.waiting, "its reply was pulled, and is lost"


def test_a_node_whose_pulls_hang_holds_few_threads_and_counts_again_once_they_end(
    grid: HangingGrid,
) -> None:
    threads: list[int] = []

    def release_after_five_queries(message: Message) -> bool:
        if len(grid.to(HANGING)) == 5 and not threads:
            threads.append(sum(each.name == f"pull-{HANGING}" for each in threading.enumerate()))
            grid.messages = range(0)
            grid.release()
        return True

    grid.on_push = release_after_five_queries
    strategy = strategy_on(grid, updates_per_round=300)
    strategy.start(grid, ArrayRecord(START), 1)
    assert len(grid.hung) == MAX_HANGING_PULLS and threads == [MAX_HANGING_PULLS]
    assert strategy.statistics().reasons == {Reason.EXPIRED: 4}
    assert strategy.statistics().replies[HANGING] > 0


def test_a_pull_that_hangs_and_then_raises_does_not_end_the_run(
    grid: HangingGrid, caplog: pytest.LogCaptureFixture
) -> None:
    failed: list[Message] = []

    def fail(ids: list[str]) -> None:
        if threading.current_thread() in grid.hung.values() and not failed:
            failed.append(grid.sent[-1])
            raise OSError("the upload was never completed")

    def release_soon(message: Message) -> bool:
        if len(grid.sent) == 20:
            grid.release()
        return True

    grid.on_pull, grid.on_push, grid.messages = fail, release_soon, range(1)
    strategy = strategy_on(grid)
    with caplog.at_level(logging.WARNING, "flwr"):
        strategy.start(grid, ArrayRecord(START), 1)
    assert strategy.statistics().accepted == 60
    assert sum("SuperLink failed (OSError)" in each for each in caplog.messages) == 1


def test_a_stopped_run_ends_although_its_pull_ran_in_another_thread(
    grid: HangingGrid,
) -> None:
    class Stopped(BaseException):
        """As flwr's RunNotRunningException, which is no Exception."""

    def stop(ids: list[str]) -> None:
        if grid.clock.now > 3.0:
            assert threading.current_thread() is not threading.main_thread()
            raise Stopped

    grid.on_pull, grid.messages = stop, range(0)
    with pytest.raises(Stopped):
        strategy_on(grid).start(grid, ArrayRecord(START), 1)


def test_where_nothing_hangs_threads_change_no_bit_and_no_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> tuple[torch.Tensor, list[tuple[int, torch.Tensor]], Any]:
        grid = FakeGrid(FakeClock(), {n: FakeNode(honest, 0.3 + 0.37 * n) for n in range(1, 8)})
        strategy = strategy_on(grid)
        result = strategy.start(grid, ArrayRecord(START), 2)
        sent = [
            (m.metadata.dst_node_id, m.content["arrays"].to_torch_state_dict()["w"])
            for m in grid.sent
        ]
        return final(result), sent, strategy.statistics()

    with_threads, sent, statistics = run()
    with monkeypatch.context() as patched:
        patched.setattr(poller_module, "clock_of", clock_of)
        patched.setattr(poller_module, "Thread", None)
        without, sent_without, statistics_without = run()
    assert torch.equal(with_threads, without) and statistics == statistics_without
    assert [node for node, _ in sent] == [node for node, _ in sent_without]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(sent, sent_without, strict=True))


@pytest.mark.parametrize("virtual", [True, False])
def test_on_a_virtual_clock_no_thread_is_ever_started(
    virtual: bool, grid: HangingGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    class RecordedThread(threading.Thread):
        def start(self) -> None:
            started.append(self.name)
            super().start()

    monkeypatch.setattr(poller_module, "Thread", RecordedThread)
    grid.messages = range(0)
    if virtual:
        app = client_app(lambda query: Gradient(query.parameters), estimator=sgd())
        with VirtualGrid(app, 3) as virtual_grid:
            AsyncRobust(CoordinateWiseMedian(), SGD(0.1)).start(virtual_grid, ArrayRecord(START), 3)
    else:
        strategy_on(grid).start(grid, ArrayRecord(START), 1)
    assert bool(started) is not virtual


@pytest.mark.slow
def test_a_process_ends_at_once_and_silently_while_a_pull_hangs(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import threading\n"
        "from flwr_byzasync.wire.flower_compat import pretend_task\n"
        "from tests.server.test_poller import *\n"
        "nodes = {node: FakeNode(honest, 1.0) for node in (1, 2, HANGING)}\n"
        "grid = HangingGrid(FakeClock(), nodes, seconds=3600)\n"
        "poller_module.clock_of = lambda grid: (time.monotonic, time.sleep)\n"
        "with pretend_task(run_id=1, node_id=1):\n"
        "    strategy_on(grid).start(grid, ArrayRecord(START), 1)\n"
        "assert threading.active_count() >= 4\n"
        "print('done', flush=True)\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", str(script)],
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # A process that waited for the pull would not end within this time, on any machine.
        printed, errors = process.communicate(timeout=300)
    finally:
        process.kill()
        process.communicate()
    assert printed == "done\n"
    assert process.returncode == 0 and "Traceback" not in errors and "Fatal" not in errors


# --- the poller alone -----------------------------------------------------------------------------


def test_many_hanging_pulls_share_one_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, waits = FakeClock(), []
    monkeypatch.setattr(poller_module, "time", SimpleNamespace(monotonic=clock))
    released = threading.Event()

    def time_out(futures: list[Future[Any]], timeout: float) -> None:
        waits.append(timeout)
        clock.now += timeout

    monkeypatch.setattr(poller_module, "wait", time_out)

    def pull(message_id: str) -> list[str]:
        if message_id != "m9":
            assert released.wait(60)
        return [message_id]

    poller = ReplyPoller(pull, threads=True)
    in_flight = [f"m{k}" for k in range(10)]
    poller.begin_pass(in_flight)
    first_pass = [poller.poll(key, node_id=k) for k, key in enumerate(in_flight)]
    assert first_pass[:9] == [None] * 9
    assert waits == [PASS_TIMEOUT, *[0.0] * 9]
    poller.begin_pass(in_flight)
    assert [poller.poll(key, k) for k, key in enumerate(in_flight[:9])] == [None] * 9
    assert len(waits) == 10, "a pull that was waited for once is only checked"
    released.set()
    left = {key: k for k, key in enumerate(in_flight) if k < 9 or first_pass[9] is None}
    deadline = time.monotonic() + 60
    while left:
        assert time.monotonic() < deadline
        for key, node in list(left.items()):
            replies = poller.poll(key, node)
            if replies is not None:
                assert replies == [key]
                del left[key]
