"""A run that is killed and resumed equals the run that was never killed."""

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_byzasync import (
    AsyncRobust,
    ConfigError,
    CorrectedGradients,
    Gradient,
    Gradients,
    Models,
    Momenta,
    Payload,
    Query,
    Reason,
    VirtualGrid,
    client_app,
)
from flwr_byzasync.adversary.omniscient_grid import OmniscientGrid
from flwr_byzasync.aggregators import CTMA, Aggregator, CoordinateWiseMedian, GeometricMedian
from flwr_byzasync.attacks import Little
from flwr_byzasync.checkpoints.files import Checkpoints, read_file, write_file
from flwr_byzasync.estimators import mu2
from flwr_byzasync.optimizers import SGD, AnyTimeSGD
from flwr_byzasync.server.early_stopping import EarlyStop
from flwr_byzasync.server.training import RECONNECT_SECONDS
from flwr_byzasync.simulation import virtual_grid as simulation_module
from flwr_byzasync.simulation.federation import Churn, VirtualNode
from flwr_byzasync.weights import Capped, StalenessDiscount
from tests.apps.virtual import run_app
from tests.settings import grouped
from tests.tiers import searched, slow

RULES: dict[str, Aggregator] = {
    "cwmed": CoordinateWiseMedian(),
    "ctma(gm)": CTMA(GeometricMedian(), byz_fraction=0.3),
}
START = {"x": torch.zeros(3), "count": torch.tensor(0)}
NODES = 6
ROUNDS = 4
POLICIES: dict[str, dict[str, Any]] = {
    "counts": {},
    "capped, by age": {"weights": Capped(StalenessDiscount(), 0.3), "max_rate": 2.0},
    "waits and drops": {"on_loss": "wait", "nodes": 3, "departed": "drop"},
    "models": {"payload": Models(momentum=0.5)},
    "the server corrects": {"payload": CorrectedGradients(beta=None), "departed": "drop"},
}  # fmt: skip
CHURN = (
    Churn(1.3, 1, "leave"),
    Churn(2.1, 2, "crash"),
    Churn(4.7, 1, "join"),
    Churn(6.5, 3, "leave"),
)


def noisy(query: Query) -> Gradient:
    noise = torch.randn(3, generator=query.generator)
    return Gradient(
        {"x": query.parameters["x"] - 1.0 + 0.1 * noise},
        buffers={"count": query.buffers["count"] + 1},
        metrics={"loss": float(noise.norm())},
    )


def returning_weights(message: Message, context: Context) -> Message:
    """A ClientApp unaware of this package; its noise is drawn from what it is sent."""
    arrays = message.content["arrays"].to_torch_state_dict()  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(crc32(arrays["x"].numpy().tobytes()))
    far = arrays["x"] - 1.0 + 0.1 * torch.randn(3, generator=generator)
    reply = {"x": arrays["x"] - 0.5 * far, "count": arrays["count"] + context.node_id}
    metrics = MetricRecord({"loss": float(far.norm())})
    return Message(RecordDict({"model": ArrayRecord(reply), "metrics": metrics}), reply_to=message)


def federation(churn: tuple[Churn, ...] = (), nodes: int = NODES, seed: int = 3) -> VirtualGrid:
    profiles = [VirtualNode(compute=lambda rng: rng.lognormal(0.0, 0.7), network=0.1)] * nodes
    ours = client_app(noisy, estimator=mu2())

    def app(message: Message, context: Context) -> Message:
        theirs = "byz.payload" not in message.content["config"]
        return (returning_weights if theirs else ours)(message, context)

    return VirtualGrid(app, profiles, run_config={"seed": 1}, seed=seed, churn=churn)


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip syncs: what is killed here is a process, not the machine."""
    monkeypatch.setattr("flwr_byzasync.checkpoints.files._sync", lambda path, flags: None)


class Killing(Grid):
    """A grid that sends this process a signal when it delivers its n-th reply."""

    def __init__(self, grid: Any, at: int, number: int = signal.SIGINT) -> None:
        self._grid, self._left, self._number = grid, at, number
        self.pulled = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def pull_messages(self, message_ids: Any) -> list[Message]:
        replies = list(self._grid.pull_messages(message_ids))
        self._left -= len(replies)
        self.pulled += len(replies)
        if replies and self._left == 0:
            signal.raise_signal(self._number)
        return replies

    run = property(lambda self: self._grid.run)

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    def create_message(self, *args: Any, **kwargs: Any) -> Any:
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Any:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Any) -> Any:
        return self._grid.push_messages(messages)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        return self._grid.send_and_receive(messages, timeout=timeout)


def plain(thing: Any) -> dict[str, Any]:
    """Return a dataclass's fields, its tensors as numbers that can be compared."""
    values = vars(thing).items()
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in values}


class Run:
    """One process of a run: its strategy, what it evaluated and what came of it."""

    def __init__(self, folder: Path | None, rule: str = "cwmed", **changes: Any) -> None:
        resume = folder is not None and folder.exists() and any(folder.iterdir())
        arguments = {
            "aggregator": RULES[rule],
            "optimizer": AnyTimeSGD(lr=0.05),
            "updates_per_round": 9,
            "buffers": ["count"],
            "checkpoints": None if folder is None else Checkpoints(folder, every_rounds=2),
            **changes,
        }
        resume = arguments.pop("resume", resume)
        if arguments["checkpoints"] is not None:
            arguments["checkpoints"] = replace(arguments["checkpoints"], resume=resume)
        self.strategy = AsyncRobust(**grouped(**arguments))
        self.evaluated: list[int] = []
        self.result: Result | None = None

    def start(self, grid: Any, rounds: int = ROUNDS, **arguments: Any) -> "Run":
        initial = ArrayRecord(START)  # type: ignore[arg-type]
        self.result = self.strategy.start(
            grid, initial, rounds, evaluate_fn=self.evaluate, **arguments
        )
        return self

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        self.evaluated.append(server_round)
        far = float((arrays.to_torch_state_dict()["x"] - 1.0).norm())
        return MetricRecord({"far": far, "replies": self.strategy.statistics().accepted})

    @property
    def outcome(self) -> tuple[Any, ...]:
        """Everything in which two equal runs agree."""
        assert self.result is not None and self.strategy._hooks.endpoint is not None
        arrays = self.result.arrays.to_torch_state_dict()
        state = self.strategy._hooks.endpoint.state
        table = state.tables.parameters
        return (
            {name: array.tolist() for name, array in arrays.items()},
            [state.iterates.w.tolist(), table.view().rows.tolist(), table.counts, table.sent],
            {k: dict(v) for k, v in self.result.evaluate_metrics_serverapp.items()},
            {k: dict(v) for k, v in self.result.train_metrics_clientapp.items()},
            {k: dict(v) for k, v in self.result.evaluate_metrics_clientapp.items()},
            self.strategy.statistics(),
            [(key, plain(node)) for key, node in state.nodes.items()],
            [(key, plain(query)) for key, query in state.in_flight.items()],
            (dict(state.reasons), state.next_query_id, state.initial_nodes, state.quorum_pending),
        )


def wrapped(grid: VirtualGrid, omniscient: bool, rule: str) -> Any:
    if not omniscient:
        return grid
    return OmniscientGrid(grid, Little(z=1.0), grid.node_ids[:2], rule=RULES[rule])


@pytest.fixture(scope="module")
def uninterrupted() -> dict[Any, tuple[Any, ...]]:
    """The outcome of each kind of run, filled on demand."""
    return {}


@searched(few=3, many=settings().max_examples // 4)  # each is a whole run
def test_a_run_killed_at_any_reply_resumes_bit_for_bit(
    examples: int, uninterrupted: dict[Any, tuple[Any, ...]]
) -> None:
    @settings(max_examples=examples)
    @given(
        st.floats(0.0, 1.0, exclude_max=True),
        st.sampled_from(sorted(RULES)),
        st.booleans(),
        st.booleans(),
        st.sampled_from(sorted(POLICIES)),
    )
    def law(part: float, rule: str, omniscient: bool, churn: bool, policy: str) -> None:
        check_a_run_killed(uninterrupted, part, rule, omniscient, churn, policy)

    law()


def check_a_run_killed(
    uninterrupted: dict[Any, tuple[Any, ...]],
    part: float,
    rule: str,
    omniscient: bool,
    churn: bool,
    policy: str,
) -> None:
    script, changes = CHURN if churn else (), POLICIES[policy]
    key = (rule, omniscient, churn, policy)
    if key not in uninterrupted:
        with federation(script) as grid:
            outer = Killing(wrapped(grid, omniscient, rule), at=0)
            whole = Run(None, rule, **changes).start(outer)
            uninterrupted[key] = (outer.pulled, *whole.outcome, grid.clock())
    replies = uninterrupted[key][0]
    with TemporaryDirectory() as name, federation(script) as grid:
        folder, killed = Path(name), Run(Path(name), rule, **changes)
        outer = wrapped(grid, omniscient, rule)
        with pytest.raises(KeyboardInterrupt):
            killed.start(Killing(outer, 1 + int(part * replies)))
        snapshot = outer.snapshot()
        with federation(script) as other:
            again, resumed = wrapped(other, omniscient, rule), Run(folder, rule, **changes)
            again.restore(snapshot)
            resumed.start(again)
            assert (*resumed.outcome, other.clock()) == uninterrupted[key][1:]
        assert killed.evaluated + resumed.evaluated == list(range(ROUNDS + 1))


@pytest.mark.parametrize("every", [9, slow(1)])
def test_a_run_with_default_settings_killed_at_any_reply_resumes_bit_for_bit(every: int) -> None:
    """Nodes evaluate too: a kill may come while evaluations are requested or awaited."""
    settings = {"aggregator": None, "optimizer": None}
    with federation() as grid:
        outer = Killing(grid, at=0)
        whole, clock = Run(None, **settings).start(outer, rounds=2).outcome, grid.clock()
    assert outer.pulled > 30 and len(whole[4]) == 2
    for kill_at in range(1, outer.pulled + 1, every):
        with TemporaryDirectory() as name, federation() as grid:
            with pytest.raises(KeyboardInterrupt):
                Run(Path(name), **settings).start(Killing(grid, kill_at), rounds=2)
            resumed = Run(Path(name), **settings).start(grid, rounds=2)
            assert (*resumed.outcome, grid.clock()) == (*whole, clock), kill_at


ALIKE = (5, range(1, 12), {"nodes": 3})
SLOW = (50.0, 50.0, 700.0, 700.0, 1e5)
"""At 700 s four replies arrive at once, and the third shows that the fifth node is far slower."""
GIVING_UP = ([VirtualNode(compute=seconds) for seconds in SLOW], range(27, 31), {})


@pytest.mark.parametrize(("nodes", "kills", "changes"), [ALIKE, slow(*GIVING_UP)])
def test_a_run_with_simultaneous_replies_resumes_bit_for_bit(
    nodes: Any, kills: range, changes: dict[str, Any]
) -> None:
    def grid_of() -> VirtualGrid:
        return VirtualGrid(client_app(noisy, estimator=mu2()), nodes, run_config={"seed": 1})

    changes = {"reply_timeout": 5000.0, **changes}
    with grid_of() as grid:
        whole = Run(None, **changes).start(grid).outcome
    for kill_at in kills:
        with TemporaryDirectory() as name, grid_of() as grid:
            with pytest.raises(KeyboardInterrupt):
                Run(Path(name), **changes).start(Killing(grid, kill_at))
            assert Run(Path(name), **changes).start(grid).outcome == whole


def test_a_run_killed_again_and_again_is_still_the_same(tmp_path: Path) -> None:
    with federation(CHURN) as grid:
        whole = Run(None).start(grid).outcome
    with federation(CHURN) as grid:
        for _ in range(40):
            run = Run(tmp_path)
            try:
                run.start(Killing(grid, 3))
                break
            except KeyboardInterrupt:
                pass
        assert run.outcome == whole


# --- a changed federation -----------------------------------------------------------------------


def killed_at(kill_at: int, folder: Path, **settings: Any) -> Run:
    run = Run(folder, **settings)
    with federation() as grid, pytest.raises(KeyboardInterrupt):
        run.start(Killing(grid, kill_at))
    return run


def state_of(run: Run) -> Any:
    assert run.strategy._hooks.endpoint is not None
    return run.strategy._hooks.endpoint.state


def test_with_new_node_ids_training_continues_and_no_node_counts_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = killed_at(28, tmp_path)
    x, step = state_of(before).iterates.x, state_of(before).iterates.step
    monkeypatch.setattr(simulation_module, "FIRST_NODE_ID", 500)
    queries = []
    with federation(seed=8) as grid:
        push = grid.push_messages

        def watched(messages: Any) -> list[str]:
            sent = list(messages)
            queries.extend(sent)
            return push(sent)

        grid.push_messages = watched  # type: ignore[method-assign]
        after = Run(tmp_path).start(grid)
    state = state_of(after)
    assert list(state.nodes) == [500 + k for k in range(NODES)]
    assert len(state.tables.parameters) == NODES
    points = [m.content["arrays"].to_torch_state_dict()["x"] for m in queries]  # type: ignore[union-attr]
    moved = next(k for k, point in enumerate(points) if not torch.equal(point, x))
    # No step before all the new nodes have replied: each was queried again by then.
    assert {m.metadata.dst_node_id for m in queries[NODES : moved + 1]} == set(state.nodes)
    assert moved > NODES and state.iterates.step > step
    assert before.evaluated == [0, 1, 2] and after.evaluated == [3, 4]
    assert after.result is not None
    assert sorted(after.result.evaluate_metrics_serverapp) == [0, 1, 2, 3, 4]
    assert after.strategy.statistics().accepted == state.accepted >= 9 * ROUNDS
    assert after.strategy.statistics().departed_replies == 28
    assert state.reasons == {}


def test_half_of_the_nodes_keep_their_rows_and_are_queried_again(tmp_path: Path) -> None:
    before = killed_at(20, tmp_path)
    counts = [node.accepted for node in state_of(before).nodes.values()]
    with federation(nodes=3) as grid:
        after = Run(tmp_path).start(grid)
    state = state_of(after)
    assert list(state.nodes) == [100, 101, 102] and len(state.tables.parameters) == 3
    assert sorted(node.row for node in state.nodes.values()) == [0, 1, 2]
    assert state.tables.parameters.counts == tuple(
        node.accepted for node in sorted(state.nodes.values(), key=lambda node: node.row)
    )
    assert all(node.accepted > old for node, old in zip(state.nodes.values(), counts, strict=False))
    assert state.reasons == {Reason.LOST: 3}
    assert after.strategy.statistics().departed_replies == sum(counts[3:])


def test_nodes_that_come_back_one_by_one_keep_their_rows(tmp_path: Path) -> None:
    before = killed_at(20, tmp_path)
    counts = {node_id: node.accepted for node_id, node in state_of(before).nodes.items()}
    late = [Churn(0.0, k, "leave") for k in range(2, NODES)]
    late += [Churn(15.0 * (k - 1), k, "join") for k in range(2, NODES)]
    with federation(tuple(late)) as grid:
        grid.sleep(0.5)
        assert len(grid.get_node_ids()) == 2
        after = Run(tmp_path).start(grid)
        assert 60.0 < grid.clock() < RECONNECT_SECONDS
    nodes = state_of(after).nodes
    assert nodes.keys() == counts.keys() and len(state_of(after).tables.parameters) == NODES
    assert all(node.accepted >= counts[node_id] for node_id, node in nodes.items())
    assert after.strategy.statistics().departed_replies == 0


def test_the_same_nodes_in_a_new_run_are_queried_again(tmp_path: Path) -> None:
    killed_at(20, tmp_path)
    with federation() as grid:
        after = Run(tmp_path).start(grid)
    assert state_of(after).reasons == {Reason.LOST: NODES}
    assert len(state_of(after).tables.parameters) == NODES


def test_a_message_id_that_the_new_network_reuses_loses_no_node(tmp_path: Path) -> None:
    killed_at(1, tmp_path)
    # The node that joins is queried at once, with the id m0 of another node's query in flight.
    with federation(nodes=NODES + 1) as grid:
        after = Run(tmp_path).start(grid)
    assert after.strategy.statistics().rejected == NODES
    assert all(node.accepted > 1 for node in state_of(after).nodes.values())


def test_a_run_whose_nodes_do_not_come_back_ends_in_time_and_can_resume_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed_at(20, tmp_path, nodes=5)
    monkeypatch.setattr(simulation_module, "FIRST_NODE_ID", 500)
    with federation(nodes=2) as grid:
        alone = Run(tmp_path, nodes=5).start(grid, timeout=50.0)
    assert "Only 2 of 5 nodes connected within timeout=50 seconds" in caplog.text
    assert alone.evaluated == []
    with federation(nodes=5) as grid:
        assert Run(tmp_path, nodes=5).start(grid).evaluated == [3, 4]


def test_a_finished_run_has_its_result_at_once_and_takes_more_rounds(tmp_path: Path) -> None:
    with federation() as grid:
        first = Run(tmp_path).start(grid)
        next_query, clock = state_of(first).next_query_id, grid.clock()
        again = Run(tmp_path).start(grid)
        assert again.outcome == first.outcome and again.evaluated == []
        assert (state_of(again).next_query_id, grid.clock()) == (next_query, clock)
        more = Run(tmp_path).start(grid, rounds=ROUNDS + 2)
    assert more.evaluated == [ROUNDS + 1, ROUNDS + 2]
    assert more.result is not None
    assert sorted(more.result.evaluate_metrics_serverapp) == list(range(ROUNDS + 3))


def test_settings_outside_the_algorithm_may_change(tmp_path: Path) -> None:
    killed_at(28, tmp_path)
    with federation() as grid:
        after = Run(
            tmp_path, updates_per_round=4, nodes=2, reply_timeout=50.0, max_consecutive_faults=9
        ).start(grid, rounds=6)
    assert after.evaluated == [3, 4, 5, 6]
    assert state_of(after).accepted == 25 + 4 * 4


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"aggregator": GeometricMedian()}, "aggregator"),
        ({"aggregator": CTMA(CoordinateWiseMedian(), byz_fraction=0.3)}, "aggregator"),
        ({"optimizer": AnyTimeSGD(lr=0.06)}, "optimizer"),
        ({"optimizer": SGD(lr=0.05)}, "optimizer"),
        ({"buffers": ["count", "x"]}, "initial_arrays"),
    ],
)
def test_another_model_rule_or_optimizer_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], argument: str
) -> None:
    killed_at(12, tmp_path)
    with federation() as grid, pytest.raises(ConfigError) as caught:
        Run(tmp_path, **settings).start(grid)
    assert caught.value.argument == argument
    assert grid.clock() == 0.0


def test_a_model_of_another_shape_is_refused_and_the_first_difference_named(tmp_path: Path) -> None:
    killed_at(12, tmp_path)
    run = Run(tmp_path)
    other = ArrayRecord({"x": torch.zeros(4), "count": torch.tensor(0)})  # type: ignore[dict-item]
    with federation() as grid, pytest.raises(ConfigError, match=r"x torch.float32 \(3,\)"):
        run.strategy.start(grid, other, ROUNDS)


def test_a_new_run_is_refused_in_the_folder_of_another(tmp_path: Path) -> None:
    killed_at(12, tmp_path)
    with federation() as grid, pytest.raises(ConfigError, match=r"^resume=False .*resume=True"):
        Run(tmp_path, resume=False).start(grid)


@pytest.mark.parametrize("payload", [CorrectedGradients(0.5), Gradients(), Momenta()])
def test_another_payload_is_refused(tmp_path: Path, payload: Payload) -> None:
    settings = POLICIES["the server corrects"]
    killed_at(12, tmp_path, **settings)
    with federation() as grid, pytest.raises(ConfigError, match=r"^payload='.*CorrectedGradients"):
        Run(tmp_path, **{**settings, "payload": payload}).start(grid)


@pytest.mark.parametrize("stop", [EarlyStop("replies", at_least=18), EarlyStop(seconds=5.0)])
def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path, stop: EarlyStop) -> None:
    """Even if it was killed after its last checkpoint, before it recorded the stop."""
    with federation() as grid:
        whole = Run(tmp_path / "a", callbacks=[stop]).start(grid, rounds=50)
        clock = grid.clock()
        again = Run(tmp_path / "a", callbacks=[stop]).start(grid, rounds=50)
        assert again.outcome == whole.outcome and again.evaluated == []
        assert grid.clock() == clock
    rounds = max(whole.evaluated)
    assert 1 < rounds < 10
    with federation() as grid:
        with pytest.raises(KeyboardInterrupt):
            Run(tmp_path / "b", callbacks=[stop]).start(Killing(grid, 9 * rounds), rounds=50)
        assert Run(tmp_path / "b", callbacks=[stop]).start(grid, rounds=50).outcome == whole.outcome
        more = Run(tmp_path / "b").start(grid, rounds=rounds + 1)
    assert more.evaluated == [rounds + 1]


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"checkpoints": "/tmp/run1"}, "checkpoints"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], argument: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AsyncRobust(CoordinateWiseMedian(), SGD(0.1), **settings)
    assert caught.value.argument == argument
    with pytest.raises(ConfigError, match=r"^resume=1 "):
        Checkpoints("/tmp/run1", resume=1)  # type: ignore[arg-type]


def test_flowers_synchronous_loop_is_refused_because_nothing_would_be_written(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path)
    with federation() as grid, pytest.raises(ConfigError, match=r"^checkpoints="):
        Strategy.start(run.strategy, grid, ArrayRecord(START), 2)  # type: ignore[arg-type]


# --- damage -------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed_at(30, tmp_path)  # after round 2, and at the 30th reply
    older, newest = sorted(tmp_path.glob("checkpoint-*"))
    newest.write_bytes(newest.read_bytes()[:-100])
    with federation() as grid:
        after = Run(tmp_path).start(grid)
    assert (
        f"Checkpoint {newest.name} is not used: it is not a complete safetensors file"
        in caplog.text
    )
    assert f"Resuming from {older.name}" in caplog.text
    assert after.evaluated == [3, 4]


def at(document: Any, *path: Any) -> Any:
    for key in path:
        document = document[key]
    return document


def put(value: Any, *path: Any) -> Callable[[Any, dict[str, torch.Tensor]], Any]:
    """Return a change of a document: another value at a place."""

    def change(document: Any, tensors: dict[str, torch.Tensor]) -> Any:
        at(document, *path[:-1])[path[-1]] = value
        return document

    return change


def spoilt(value: Callable[[torch.Tensor], torch.Tensor], *path: Any) -> Callable[..., Any]:
    """Return a change of a document: another tensor where one is named."""

    def change(document: Any, tensors: dict[str, torch.Tensor]) -> Any:
        tensors["other"] = value(tensors[at(document, *path)])
        return put("other", *path)(document, tensors)

    return change


X, ROWS = ("state", "iterates", "x"), ("tables", "parameters", "rows")
FIRST = ("state", "nodes", 0, 1)
COUNTS = ("tables", "parameters", "counts")
WRONG: dict[str, Callable[[Any, dict[str, torch.Tensor]], Any]] = {
    "a list": lambda document, tensors: [],
    "a number": lambda document, tensors: 3,
    "nothing": lambda document, tensors: {},
    "fingerprint is a list": put([], "fingerprint"),
    "a model of numbers": put([], "fingerprint", "initial_arrays"),
    "x is longer": spoilt(lambda x: torch.cat([x, x]), *X),
    "x is of another dtype": spoilt(torch.Tensor.double, *X),
    "x is nan": spoilt(lambda x: x * torch.nan, *X),
    "a row is infinite": spoilt(lambda rows: rows + torch.inf, *ROWS),
    "one row too few": spoilt(lambda rows: rows[1:].clone(), *ROWS),
    "counters are floats": spoilt(torch.Tensor.float, "state", "counters"),
    "a row that is not there": put(999, *FIRST, "row"),
    "two nodes have one row": put(1, *FIRST, "row"),
    "counts of 2^70": put([2**70] * NODES, *COUNTS),
    "negative counts": put([-1] * NODES, *COUNTS),
    "other counts than the nodes": put([1] * NODES, *COUNTS),
    "a step of 2^70": put(2**70, "state", "iterates", "step"),
    "a query of an unknown node": put(999, "state", "in_flight", 0, 1, "node_id"),
    "a query of the future": put(10**6, "state", "in_flight", 0, 1, "step"),
    "a query at no time": put(float("nan"), "state", "in_flight", 0, 1, "sent_at"),
    "a node twice": lambda document, tensors: put(
        document["state"]["nodes"][1][0], "state", "nodes", 0, 0
    )(document, tensors),
    "a round of -1": put(-1, "position", "server_round"),
    "a round without a size": put(0, "position", "size"),
    "no time": put(float("inf"), "position", "now"),
    "a time without end": put(10**400, "position", "elapsed"),
    "metrics are no json": put("{", "position", "history"),
    "metrics are a list": put("[1, 2]\n", "position", "history"),
    "metrics of another kind": put('["arrays", 1, {}]\n', "position", "history"),
    "metrics of no round": put('["train_metrics_clientapp", "1", {}]\n', "position", "history"),
    "metrics are text": put('["train_metrics_clientapp", 1, {"a": "b"}]\n', "position", "history"),
    "metrics nested without end": put("[" * 10**5, "position", "history"),
}


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two checkpoints: after round 2, and at the 30th reply."""
    folder = tmp_path_factory.mktemp("killed")
    killed_at(30, folder)
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_a_checkpoint_of_a_run_that_cannot_be_is_named_and_the_one_before_it_is_used(
    name: str, killed_once: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The checksum is right: who wrote the file is in error, or no friend."""
    older, newest = (Path(shutil.copy(path, tmp_path)) for path in sorted(killed_once.iterdir()))
    document, tensors = read_file(newest)
    write_file(newest, WRONG[name](document, tensors), tensors)
    with federation() as grid:
        after = Run(tmp_path).start(grid)
    assert f"Checkpoint {newest.name} is not used: " in caplog.text
    assert f"Resuming from {older.name}" in caplog.text
    assert after.evaluated == [3, 4]


def test_where_all_checkpoints_are_damaged_the_run_does_not_start_over(tmp_path: Path) -> None:
    killed_at(30, tmp_path)
    for path in tmp_path.glob("checkpoint-*"):
        path.write_bytes(b"")
    with federation() as grid, pytest.raises(ConfigError, match=r"^folder=.*a complete checkpoint"):
        Run(tmp_path).start(grid)


class StoppedError(BaseException):
    """As Flower signals that a run was stopped: not an Exception."""


@pytest.mark.parametrize("where", ["evaluate_fn", "callback", "grid", "rule"])
def test_an_exception_is_raised_once_the_run_is_written_down(tmp_path: Path, where: str) -> None:
    """Except a rule's, which may leave tables and state inconsistent."""
    calls = 0

    def fails(*_: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StoppedError(where)

    def rule(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        fails()
        return CoordinateWiseMedian()(rows, weights)

    settings: dict[str, Any] = {"checkpoints": Checkpoints(tmp_path, every_rounds=1000)}
    with federation() as grid:
        whole = Run(None, callbacks=[lambda *_: None]).start(grid).outcome
    with federation() as grid:
        own: dict[str, Any] = {"callback": {"callbacks": [fails]}, "rule": {"aggregator": rule}}
        run = Run(tmp_path, **settings, **own.get(where, {}))
        if where == "evaluate_fn":
            evaluate = run.evaluate
            run.evaluate = lambda *args: fails() or evaluate(*args)  # type: ignore[method-assign]
        elif where == "grid":
            pull, reached = grid.pull_messages, lambda: run.strategy.statistics().accepted > 12
            grid.pull_messages = lambda ids: (reached() and fails()) or pull(ids)  # type: ignore
        with pytest.raises(StoppedError, match=where):
            run.start(grid)
        assert len(list(tmp_path.iterdir())) == (where != "rule")
        if where == "rule":
            assert (
                run.strategy._hooks.endpoint is not None
                and run.strategy._hooks.endpoint.inconsistent
            )
            return
        assert Run(tmp_path, **settings).start(grid).outcome == whole


def test_numpy_numbers_are_saved_as_plain_numbers(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "reply_timeout": np.int64(600), "min_reply_timeout": np.float32(60),
        "optimizer": AnyTimeSGD(np.float64(0.05), np.float32(0.5)), "max_rate": Fraction(5, 2),
        "weights": Capped(StalenessDiscount(np.float32(0.5)), np.float64(0.5)),
        "callbacks": [EarlyStop(seconds=np.int32(10**6))],
    }  # fmt: skip
    checkpoints = Checkpoints(tmp_path, np.int64(1), np.float32(600), np.int64(2))
    with federation() as grid:
        Run(tmp_path, checkpoints=checkpoints, **settings).start(grid, rounds=np.int64(2))
        settings["optimizer"] = AnyTimeSGD(0.05, 0.5)
        run = Run(tmp_path, checkpoints=checkpoints, **settings).start(grid)
    assert run.evaluated == [3, 4] and len(list(tmp_path.iterdir())) == 2
    assert checkpoints == Checkpoints(tmp_path, 1, 600.0, 2)


def test_what_evaluate_fn_returns_is_a_metric_record_or_refused_at_once(tmp_path: Path) -> None:
    for metrics, legal in (({"loss": 1.5}, True), ({"loss": "low"}, False), (0.5, False)):
        with TemporaryDirectory() as name, federation() as grid:
            run = Run(Path(name))
            run.evaluate = lambda *_, metrics=metrics: metrics  # type: ignore[method-assign]
            if legal:
                result = run.start(grid, rounds=1).result
                assert result is not None
                assert dict(result.evaluate_metrics_serverapp[1]) == {"loss": 1.5}
            else:
                with pytest.raises(ConfigError, match=r"^evaluate_fn=.*MetricRecord or None"):
                    run.start(grid)


def test_a_run_that_ended_with_all_quarantined_queries_them_on_resume(tmp_path: Path) -> None:
    """However long they still had to wait: whoever resumes has fixed the cause."""
    failing = [True, True]

    def app(message: Message, context: Context) -> Message:
        accepted = strategy.statistics().accepted
        if failing[0] and accepted >= 12:
            raise RuntimeError("no data")
        return client_app(noisy, estimator=mu2())(message, context)

    for part in range(3):
        failing[0] = part < 2
        with VirtualGrid(app, NODES, run_config={"seed": 1}) as grid:
            run = Run(tmp_path)
            strategy = run.strategy
            run.start(grid, timeout=2000.0)
        assert bool(strategy.statistics().stop_reason) == failing[0]
        if failing[0]:
            assert "every connected node is quarantined" in strategy.statistics().stop_reason
            assert 1000 < grid.clock() < 2100
    assert strategy.statistics().accepted >= 9 * ROUNDS


def test_a_full_disk_costs_checkpoints_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    run = Run(tmp_path)
    monkeypatch.setattr("flwr_byzasync.checkpoints.files.write_file", full)
    with federation() as grid:
        assert run.start(grid).evaluated == list(range(ROUNDS + 1))
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_overflows_keeps_its_earlier_checkpoints(
    tmp_path: Path,
) -> None:
    """However often it is resumed, its earlier state is not lost."""

    class Explodes(SGD):
        def step(self, iterates: Any, direction: torch.Tensor) -> Any:
            return super().step(iterates, direction * (torch.inf if iterates.step > 20 else 1.0))

    checkpoints = Checkpoints(tmp_path, every_rounds=1, keep=3)
    listings = []
    for _ in range(3):
        with federation() as grid:
            run = Run(tmp_path, optimizer=Explodes(0.05), checkpoints=checkpoints).start(grid)
        assert run.result is not None and run.strategy.statistics().steps == 21
        assert all(v.isfinite().all() for v in run.result.arrays.to_torch_state_dict().values())
        listings.append(sorted(path.name for path in tmp_path.iterdir()))
    assert len(listings[0]) == 3 and listings[0] == listings[1] == listings[2]


# --- when ---------------------------------------------------------------------------------------


def test_checkpoints_are_written_by_time_too_and_only_the_last_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every_rounds=None, every_seconds=1.0, keep=2)
    with federation() as grid:
        Run(tmp_path, checkpoints=checkpoints).start(grid)
        written = sorted(path.name for path in tmp_path.iterdir())
        numbers = [int(name[11:19]) for name in written]
        assert len(written) == 2 and numbers[1] == numbers[0] + 1
        assert grid.clock() - 3 <= numbers[1] <= grid.clock() + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_checkpoint_and_its_handler_is_as_before(
    tmp_path: Path, number: signal.Signals
) -> None:
    files: list[int] = []
    before = signal.signal(number, lambda n, _: files.append(len(list(tmp_path.iterdir()))))
    try:
        handler = signal.getsignal(number)
        with federation() as grid:
            run = Run(tmp_path).start(Killing(grid, 7, number))
        assert files == [1] and run.evaluated == list(range(ROUNDS + 1))
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def test_in_another_thread_signals_are_not_caught_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="flwr")
    with federation() as grid:
        run = Run(tmp_path)
        thread = threading.Thread(target=run.start, args=(grid,))
        thread.start()
        thread.join()
    assert run.evaluated == list(range(ROUNDS + 1))
    assert "cannot be caught in this thread" in caplog.text


# --- kill -9 ------------------------------------------------------------------------------------

CHILD = """
import sys, torch
from pathlib import Path
from tests.checkpoints.test_resume import Run, federation
torch.set_num_threads(1)
with federation() as grid:
    sleep = grid.sleep
    grid.sleep = lambda seconds: (print(grid.clock(), flush=True), sleep(seconds))
    Run(Path(sys.argv[1])).start(grid, rounds=10_000)
"""


@pytest.mark.slow
def test_a_process_killed_without_warning_loses_what_came_after_its_last_checkpoint(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert child.stdout is not None
        while not list(tmp_path.glob("checkpoint-*")):
            assert child.stdout.readline(), "the run ended"
        time.sleep(random.Random(tmp_path.name).uniform(0.0, 0.3))
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    done = (int(max(tmp_path.glob("checkpoint-*")).name[11:19])) * 2
    with federation() as grid:
        after = Run(tmp_path).start(grid, rounds=done + 2)
    assert after.evaluated == [done + 1, done + 2]
    assert after.result is not None
    assert list(after.result.evaluate_metrics_serverapp) == list(range(done + 3))
    assert not list(tmp_path.glob(".*"))


# --- the reference app --------------------------------------------------------------------------


def test_the_reference_app_resumes_and_appends_its_metrics(tmp_path: Path) -> None:
    small = {"checkpoint_dir": str(tmp_path / "run"), "resume": True, "updates_per_round": 20}
    nodes = [VirtualNode(compute=lambda rng: rng.lognormal(0.0, 0.5))] * 10
    run_app(tmp_path / "out", nodes, num_server_rounds=2, **small)
    summary = run_app(tmp_path / "out", nodes, num_server_rounds=4, **small)
    assert summary["rounds"] == 4 and summary["config"]["resume"] is True
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2, 3, 4]
    replies = [json.loads(line)["replies"] for line in lines]
    assert replies == sorted(replies) and replies[-1] == summary["replies"]


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"checkpoint_dir": "run"}, "checkpoint-dir"),
        ({"checkpoint_every": 0}, "checkpoint-every"),
        ({"resume": "yes"}, "resume"),
        ({"resume": True}, "resume"),
    ],
)
def test_the_reference_app_refuses_bad_settings_by_name(
    tmp_path: Path, changes: dict[str, Any], argument: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run_app(tmp_path / "out", 10, **changes)
    assert caught.value.argument == argument
