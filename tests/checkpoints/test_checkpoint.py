"""Checkpoints contain everything, are whole or refused by name, and are never half written."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from flwr_byzasync.aggregators import CTMA, CoordinateWiseMedian, GeometricMedian
from flwr_byzasync.checkpoints import files as checkpoint_module
from flwr_byzasync.checkpoints.codec import MisfitError, pack, types_of, unpack
from flwr_byzasync.checkpoints.content import Position
from flwr_byzasync.checkpoints.files import (
    FORMAT,
    VERSION,
    Checkpoints,
    DamagedError,
    read_file,
    write_file,
)
from flwr_byzasync.checkpoints.snapshot import (
    SETTINGS,
    check_fingerprint,
    described,
    dump,
    load,
    run_fingerprint,
)
from flwr_byzasync.core.clock_time import ClockTime
from flwr_byzasync.core.events import on_clock, on_reply, on_sent
from flwr_byzasync.core.membership import on_connected, without_absent
from flwr_byzasync.core.pending_evaluations import (
    EvaluationRequest,
    PendingEvaluations,
    complete_rounds,
)
from flwr_byzasync.core.policy import Policy
from flwr_byzasync.core.state import InFlightQuery, Node, ServerState, Tables, Update, initial_state
from flwr_byzasync.core.statistics import RoundStart, last_metrics, statistics
from flwr_byzasync.core.table import Table
from flwr_byzasync.errors import ConfigError, Reason
from flwr_byzasync.optimizers import SGD, AnyTimeSGD, Iterates
from flwr_byzasync.weights import Capped, Counts, StalenessDiscount, WeightPolicy
from tests.settings import policy_of

MODEL = {"w": torch.zeros(2, 2), "mean": torch.zeros(3), "count": torch.tensor(4)}
NOT_OF_A_CLOCK = {
    (Node, "reply_times"), (Node, "metrics"), (PendingEvaluations, "answers"),
    (InFlightQuery, "limit"), (InFlightQuery, "paused_for"),
}  # fmt: skip
"""Floats in the state that are not clock times: durations, and what nodes report."""


def fresh(weigh: WeightPolicy | None = None) -> ServerState:
    optimizer, policy = AnyTimeSGD(lr=0.1), policy_of(nodes=2)
    device = torch.device("cpu")
    return initial_state(MODEL, ["mean"], CoordinateWiseMedian(), optimizer, policy, device, weigh)


def position_at(now: float, state: ServerState) -> Position:
    pending = PendingEvaluations(
        {"m9": EvaluationRequest(2, 1, now - 3.0)}, {2: ({"loss": 0.5},)}, polled_at=now
    )
    round_start = RoundStart(now - 2.0, min(4, state.accepted), min(1, state.staleness))
    return Position(now, 7.0, 3, 5, round_start, (1, 2, 3), '["of", 1, {}]\n', pending)


def played(seed: int, events: int = 12, weigh: WeightPolicy | None = None) -> ServerState:
    """A state after some replies of three nodes, at times drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    state, now = on_connected(fresh(weigh), [1, 2, 3]), 100.0
    for query in range(events):
        node_id = int(torch.randint(1, 4, (1,), generator=generator))
        now += float(torch.rand(1, generator=generator, dtype=torch.float64))
        state = on_sent(state, node_id, f"m{query}", query, now)
        if query % 4 < 3:
            vector, buffers = (torch.randn(n, generator=generator) for n in (4, 3))
            update = Update(vector, buffers, torch.tensor([query]), {"loss": 1.0 / (query + 1)})
            state = on_reply(state, f"m{query}", update, now + 0.5)
    return replace(state, reasons={Reason.LOST: 2, Reason.NON_FINITE: 1})


def through_a_file(
    state: ServerState, folder: Path, now: float, weigh: WeightPolicy | None = None
) -> tuple[ServerState, Position]:
    path = folder / "checkpoint-00000001.safetensors"
    write_file(path, *dump(state, position_at(200.0, state), {"payload": "momentum"}))
    return load(*read_file(path), fresh(weigh), now)


def plain(value: Any) -> Any:
    """Return a value with its tensors and tables as lists, to be compared."""
    if isinstance(value, Tensor):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, Table):
        return [plain(value.view().rows), value.counts, value.sent, plain(value.view().weights)]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return [(key, plain(item)) for key, item in value.items()]
    return value


# --- everything ---------------------------------------------------------------------------------


def example(hint: Any, number: int) -> Any:
    """Return a value of a declared type that differs from every default."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    origin, args = get_origin(hint), get_args(hint)
    if hint is Tensor:
        return torch.full((3,), float(number))
    if is_dataclass(hint):
        return hint(
            **{k: example(h, number + n) for n, (k, h) in enumerate(types_of(hint).items())}
        )  # type: ignore[operator]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return list(hint)[-1]
    if origin is Mapping:
        return {example(args[0], number): example(args[1], number + 1)}
    if origin in (tuple, frozenset, list):
        return origin([example(args[0], number + k) for k in range(2)])
    if origin in (Union, UnionType):
        return example(next(arm for arm in args if arm is not NoneType), number)
    return {
        bool: lambda: True,
        int: lambda: number,
        float: lambda: number + 0.25,
        str: lambda: f"k{number}",
    }[hint]()


@pytest.mark.parametrize("cls", [Node, InFlightQuery, Iterates, Position])
def test_every_field_of_what_the_server_knows_is_saved(cls: type) -> None:
    """A new field is saved as it is declared, or this fails for want of a codec."""
    value, tensors = example(cls, 1000), {}
    document = json.loads(json.dumps(pack(value, cls, tensors)))
    assert plain(unpack(document, cls, tensors)) == plain(value)
    assert set(document) == {field.name for field in fields(cls)}


def test_every_field_of_the_state_is_saved_or_passed_again(tmp_path: Path) -> None:
    state, skipped = played(1), SETTINGS | {"tables"}
    hints = {k: h for k, h in types_of(ServerState).items() if k not in skipped}
    known = {"nodes": state.nodes, "in_flight": state.in_flight, "iterates": state.iterates}
    # What must fit the model, or the nodes, or it is refused.
    known |= {"buffers": torch.full((3,), 0.5), "counters": torch.tensor([7])}
    known |= {"initial_nodes": frozenset({1, 2, 9}), "quorum_pending": frozenset({1, 2})}
    others = {k: example(h, 5000 + n) for n, (k, h) in enumerate(hints.items())} | known
    state = replace(state, **others)
    loaded, _ = through_a_file(state, tmp_path, 200.0)
    for name in hints:
        assert plain(getattr(loaded, name)) == plain(getattr(state, name)), name
        assert plain(getattr(state, name)) != plain(getattr(fresh(), name)), name
    assert {field.name for field in fields(ServerState)} == hints.keys() | skipped


def test_a_table_keeps_nothing_but_what_is_saved_derived_or_passed_again() -> None:
    derived_or_passed = {"_aggregator", "_incremental", "_derived", "_weigh", "_weights"}
    derived_or_passed |= {"_moves_with_rows"}
    saved = {"_rows", "_counts", "_sent", "_step"}
    assert set(vars(fresh().tables.parameters)) - {"__orig_class__"} == saved | derived_or_passed


def test_every_float_of_the_state_is_declared_as_a_clock_time_or_not() -> None:
    typed = {
        (cls, field.name): hint
        for cls in (
            Node,
            InFlightQuery,
            RoundStart,
            ServerState,
            EvaluationRequest,
            PendingEvaluations,
        )
        for field in fields(cls)
        if "float" in str(hint := types_of(cls)[field.name])
    }
    assert {key for key, hint in typed.items() if hint != ClockTime} == NOT_OF_A_CLOCK
    assert len(typed) > len(NOT_OF_A_CLOCK)


@given(
    st.integers(0, 2**32),
    st.integers(0, 15),
    st.sampled_from([200.0, 0.1, 1e9]),
    st.sampled_from([None, StalenessDiscount(power=1.0), Capped(Counts(), 0.4)]),
)
def test_a_state_goes_through_a_file_bit_for_bit(
    seed: int, events: int, now: float, weigh: WeightPolicy | None
) -> None:
    state = played(seed, events, weigh)
    with TemporaryDirectory() as name:
        loaded, position = through_a_file(state, Path(name), now, weigh)
    shift = now - 200.0
    nodes = {key: replace(node, due=node.due + shift) for key, node in state.nodes.items()}
    in_flight = {
        key: replace(query, sent_at=query.sent_at + shift) for key, query in state.in_flight.items()
    }
    assert plain(loaded) == plain(replace(state, nodes=nodes, in_flight=in_flight))
    assert list(loaded.nodes) == list(state.nodes) and list(loaded.in_flight) == list(
        state.in_flight
    )
    before = position_at(200.0, state)
    requests = {"m9": EvaluationRequest(2, 1, 197.0 + shift)}
    pending = replace(before.evaluations, requests=requests, polled_at=200.0 + shift)
    round_start = replace(before.round_start, at=198.0 + shift)
    assert position == replace(before, now=now, round_start=round_start, evaluations=pending)


@given(st.integers(0, 2**32))
def test_a_resumed_state_steps_like_one_that_never_stopped(seed: int) -> None:
    state = played(seed)
    with TemporaryDirectory() as name:
        loaded, _ = through_a_file(state, Path(name), 200.0)
    ends = []
    for one in (state, loaded):
        for query in range(20, 26):
            node_id = query % 3 + 1
            one = on_sent(one, node_id, f"m{query}", query, 200.0)
            update = Update(torch.full((4,), 1.0 / query), torch.ones(3), torch.tensor([query]))
            one = on_reply(one, f"m{query}", update, 201.0)
        ends.append(plain(one))
    assert ends[0] == ends[1]


def test_a_third_party_optimizer_s_state_is_saved(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Heavy(Iterates):
        velocity: Tensor | None = None

    state = played(1)
    heavy = Heavy(*(getattr(state.iterates, f.name) for f in fields(Iterates)), torch.ones(4))
    path = tmp_path / "checkpoint-00000001.safetensors"
    write_file(path, *dump(replace(state, iterates=heavy), position_at(1.0, state), {}))
    loaded, _ = load(*read_file(path), replace(fresh(), iterates=heavy), 1.0)
    assert plain(loaded.iterates) == plain(heavy)


def test_a_shared_tensor_is_written_once(tmp_path: Path) -> None:
    state = initial_state(
        MODEL, ["mean"], CoordinateWiseMedian(), SGD(0.1), Policy(), torch.device("cpu")
    )
    _, tensors = dump(state, position_at(1.0, state), {})
    assert sum(tensor.shape == (4,) for tensor in tensors.values()) == 1


def test_a_type_without_a_codec_is_refused() -> None:
    with pytest.raises(TypeError, match="no codec"):
        pack(1j, complex, {})
    with pytest.raises(TypeError, match="no codec"):
        unpack(1, complex, {})


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int), (1.5, int), ("1", int), (1, str), (None, float), ([1], int | float),
        ([[1]], Mapping[int, int]), ({}, Iterates), ("NOBODY", Reason), ("t9", Tensor),
        (3, tuple[int, ...]),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_a_misfit(value: object, hint: Any) -> None:
    with pytest.raises(MisfitError):
        unpack(value, hint, {})


# --- content that no run has ---------------------------------------------------------------------


def places(plain: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value of a document."""
    yield path
    if isinstance(plain, dict | list):
        keys = plain if isinstance(plain, dict) else range(len(plain))
        for key in keys:
            yield from places(plain[key], (*path, key))


def at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    at(document, path[:-1])[path[-1]] = value
    return document


def resolved(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return a document with its tensors as lists: names of tensors may differ."""
    if isinstance(plain, dict):
        return {key: resolved(value, tensors) for key, value in plain.items()}
    if isinstance(plain, list):
        return [resolved(value, tensors) for value in plain]
    if isinstance(plain, str) and plain in tensors:
        return [str(tensors[plain].dtype), tensors[plain].tolist()]
    return plain


def start_over(state: ServerState, position: Position) -> None:
    """Do with a state what a run would do next; nothing may raise."""
    statistics(state)
    last_metrics(state)
    for _ in complete_rounds(position.evaluations):
        pass
    now = position.now
    state = on_connected(on_clock(state, now), [1, 2, 3, 4])
    for query, node_id in enumerate([1, 2, 3, 4] * 2, state.next_query_id):
        state = on_sent(state, node_id, f"next {query}", query, now)
        vector, buffers = torch.full((4,), 0.5), torch.ones(3)
        update = Update(vector, buffers, torch.tensor([query]), {"loss": 1.0})
        state = on_reply(state, f"next {query}", update, now + 1.0)
        assert state.iterates.x.isfinite().all()
    without_absent(state, [2, 3])


ODD = st.sampled_from(
    [
        None, True, -1, 0, 1, 2, 3, 4, 9, 999, 2**62, 2**63, 2**70, 10**400, 0.5, -0.5, 1e300,
        math.nan, math.inf, -math.inf, "", "t0", "t1", "t5", "m3", "LOST", "QUERIED", [], {}, [1],
        [[1, 2]], [1, 1], [3, 2, 1], ["t0"], [math.nan], {"a": 1}, "[", "\ud800",
    ]
)  # fmt: skip
SPOIL: dict[str, Callable[[Tensor], Tensor]] = {
    "longer": lambda t: torch.cat([t.reshape(-1)] * 2 + [torch.ones(1, dtype=t.dtype)]),
    "shorter": lambda t: t[:-1].clone(),
    "other rank": lambda t: t.unsqueeze(0).clone(),
    "none": lambda t: t.new_empty(0),
    "other dtype": lambda t: t.to(torch.float16),
    "complex": lambda t: t.to(torch.complex64),
    "bool": lambda t: t.to(torch.bool),
    "nan": lambda t: t.float().mul(math.nan),
    "inf": lambda t: t.float().add(math.inf),
    "changed": lambda t: t + 1,
}


def check_corrupted(document: Any, tensors: dict[str, Tensor], now: float) -> bool:
    """Load what is wrong perhaps; return whether it was refused. It must be right if not."""
    own = {"payload": "momentum"}
    with TemporaryDirectory() as name:
        path = Path(name) / "checkpoint-00000001.safetensors"
        write_file(path, document, tensors)
        try:
            read, read_tensors = read_file(path)
            check_fingerprint(read.get("fingerprint"), own, path.name)
            state, position = load(read, read_tensors, fresh(), now)
        except (DamagedError, MisfitError):
            return True
        except ConfigError:  # another run's
            assert document["fingerprint"] != own
            return True
    again = dump(state, position, own)
    if document["position"]["now"] == now:  # else every time of a clock is shifted
        assert resolved(*again) == resolved(document, tensors)
    load(json.loads(json.dumps(again[0])), again[1], fresh(), now)
    start_over(state, position)
    return False


@given(st.data(), st.integers(0, 2**32))
def test_a_wrong_value_anywhere_is_refused_or_is_right(data: st.DataObject, seed: int) -> None:
    state = played(seed)
    document, tensors = dump(state, position_at(200.0, state), {"payload": "momentum"})
    document = json.loads(json.dumps(document))
    path = data.draw(st.sampled_from(list(places(document))))
    others = st.sampled_from(list(places(document))).map(lambda where: at(document, where))
    value = json.loads(json.dumps(data.draw(ODD | others)))
    check_corrupted(put(document, path, value), tensors, 200.0)


@given(st.data(), st.integers(0, 2**32), st.sampled_from(sorted(SPOIL)))
def test_a_wrong_tensor_anywhere_is_refused_or_is_right(
    data: st.DataObject, seed: int, how: str
) -> None:
    state = played(seed)
    document, tensors = dump(state, position_at(200.0, state), {"payload": "momentum"})
    document = json.loads(json.dumps(document))
    name = data.draw(st.sampled_from(sorted(tensors)))
    refused = check_corrupted(document, {**tensors, name: SPOIL[how](tensors[name])}, 200.0)
    assert refused or how == "changed"


@pytest.mark.parametrize("text", [b"", b"[]", b"3", b"\xff", b"{", b"[" * 10**5, b"9" * 5000])
def test_a_document_that_is_no_json_object_is_damaged(text: bytes, tmp_path: Path) -> None:
    stored = {"document": torch.frombuffer(bytearray(text or b" "), dtype=torch.uint8)}
    checksum = checkpoint_module._checksum(stored)
    path = tmp_path / "checkpoint-00000001.safetensors"
    save_file(stored, path, {"format": FORMAT, "version": VERSION, "sha256": checksum})
    with pytest.raises(DamagedError, match="its document is no JSON"):
        read_file(path)


# --- among other nodes --------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.sets(st.sampled_from([1, 2, 3, 10**15 + 7])))
def test_without_absent_nodes_nothing_of_them_is_left(seed: int, here: set[int]) -> None:
    ids = {1: 10**15 + 1, 2: 10**15 + 2, 3: 10**15 + 3}
    state = played(seed)
    nodes = {ids[key]: node for key, node in state.nodes.items()}
    in_flight = {k: replace(q, node_id=ids[q.node_id]) for k, q in state.in_flight.items()}
    state = replace(state, nodes=nodes, in_flight=in_flight, initial_nodes=frozenset(ids.values()))
    present = [ids.get(node_id, node_id) for node_id in sorted(here)]
    rows = {
        key: state.tables.parameters.view().rows[n.row].tolist()
        for key, n in nodes.items()
        if n.row is not None
    }
    after = without_absent(state, present)
    text = json.dumps(dump(after, Position(0.0, 0.0, 1, 1, RoundStart(0.0)), {})[0])
    assert all(str(node_id) in text for node_id in present)
    assert not any(str(node_id) in text for node_id in set(ids.values()) - set(present))
    kept = [key for key in present if key in rows]
    for table in (after.tables.parameters, after.tables.buffers, after.tables.counters):
        assert sorted(after.nodes[key].row for key in kept) == list(range(len(table)))  # type: ignore[type-var]
    for key in kept:
        assert after.tables.parameters.view().rows[after.nodes[key].row].tolist() == rows[key]
        assert after.tables.parameters.counts[after.nodes[key].row] == after.nodes[key].accepted  # type: ignore[index]
    assert after.quorum_pending == after.initial_nodes == frozenset(present)
    assert after.accepted == state.accepted


# --- files --------------------------------------------------------------------------------------

DOCUMENT, TENSORS = {"a": [1, 2.5, None]}, {"t0": torch.arange(6.0), "t1": torch.tensor(3)}


def written(folder: Path, count: int = 1, keep: int = 3) -> list[Path]:
    checkpoints = Checkpoints(folder, keep=keep)
    for _ in range(count):
        checkpoints.write(DOCUMENT, TENSORS)
    return checkpoints.paths()


def test_what_is_written_is_read_back_and_numbers_of_any_kind_survive(tmp_path: Path) -> None:
    numbers = [math.inf, -math.inf, 0.1, 5e-324, -0.0, 2**80, 1e308]
    path = tmp_path / "checkpoint-00000001.safetensors"
    write_file(path, {"numbers": numbers, "text": "µ\n\"'\0"}, TENSORS)
    document, tensors = read_file(path)
    assert repr(document) == repr({"numbers": numbers, "text": "µ\n\"'\0"})
    assert plain(tensors) == plain(TENSORS)


def test_a_flipped_bit_anywhere_is_detected(tmp_path: Path) -> None:
    (path,) = written(tmp_path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            document, tensors = read_file(path)
        except DamagedError:
            continue
        # Only the header's whitespace and the order of its keys are not covered.
        assert document == DOCUMENT and plain(tensors) == plain(TENSORS), at


@given(st.data())
def test_a_truncated_file_is_refused(data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        (path,) = written(Path(name))
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(DamagedError, match="not a complete safetensors file"):
            read_file(path)


def foreign(path: Path) -> None:
    save_file({"w": torch.zeros(2)}, path)


def of_the_future(path: Path) -> None:
    save_file({"w": torch.zeros(2)}, path, {"format": FORMAT, "version": "99"})


def without_checksum(path: Path) -> None:
    save_file({"w": torch.zeros(2)}, path, {"format": FORMAT, "version": VERSION, "document": "{}"})


def a_pickle(path: Path) -> None:
    torch.save({"w": torch.zeros(2)}, path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (foreign, "it was not written by flwr_byzasync"),
        (of_the_future, f"its format version is 99, and this release reads {VERSION}"),
        (without_checksum, "its content does not match its checksum"),
        (a_pickle, "it is not a complete safetensors file"),
        (a_folder, "it is not a regular file"),
    ],
)
def test_a_foreign_file_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], why: str
) -> None:
    newest, older = written(tmp_path, count=2)
    spoil(newest)
    with caplog.at_level(logging.WARNING, logger="flwr"):
        read = list(Checkpoints(tmp_path).read())
    assert [path for path, _, _ in read] == [older]
    assert f"Checkpoint {newest.name} is not used: {why}" in caplog.text


def test_the_last_few_are_kept_and_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("checkpoint-final.safetensors", "model.safetensors"):
        (tmp_path / name).write_bytes(b"mine")
    paths = written(tmp_path, count=12, keep=2)
    assert [path.name[11:19] for path in paths] == ["00000012", "00000011"]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("step", ["save_file", "_sync", "replace"])
def test_a_write_that_fails_keeps_the_earlier_files_and_leaves_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = written(tmp_path, count=3)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    where: Any = Path if step == "replace" else checkpoint_module
    monkeypatch.setattr(where, step, fails)
    with pytest.raises(OSError, match="No space"):
        Checkpoints(tmp_path).write(DOCUMENT, TENSORS)
    assert sorted(tmp_path.iterdir()) == sorted(before)


def test_a_file_is_synced_before_it_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(
        Path, "replace", lambda self, target: (done.append("rename"), rename(self, target))[1]
    )
    written(tmp_path)
    assert done == ["fsync", "rename", "fsync"]


def test_a_partial_file_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    partial = tmp_path / "deep" / ".checkpoint-00000007.safetensors.tmp"
    checkpoints = Checkpoints(tmp_path / "deep")
    checkpoints.prepare()
    partial.write_bytes(b"half")
    assert checkpoints.paths() == []
    with checkpoints.claim():
        assert not partial.exists()
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"folder": "runs/1"}, "folder"), ({"folder": ""}, "folder"), ({"folder": 3}, "folder"),
        ({"every_rounds": 0}, "every_rounds"), ({"every_rounds": 1.5}, "every_rounds"),
        ({"every_rounds": None}, "every_rounds"), ({"every_seconds": 0.0}, "every_seconds"),
        ({"every_seconds": math.inf}, "every_seconds"), ({"every_seconds": "60"}, "every_seconds"),
        ({"keep": 0}, "keep"), ({"keep": True}, "keep"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], argument: str) -> None:
    with pytest.raises(ConfigError, match=f"^{argument}=.* is not legal: it must be .*; .*\\.$"):
        Checkpoints(**{"folder": "/data/run1", **settings})


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^folder=.*that can be created and written to"):
        Checkpoints(tmp_path / "file" / "run").prepare()


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system has no locks of this kind")
    with Checkpoints(tmp_path).claim():
        partial = tmp_path / ".checkpoint-00000001.safetensors.tmp"
        partial.write_bytes(b"being written")
        refused = pytest.raises(ConfigError, match=r"^folder=.*no other run uses; wait for it to")
        with refused, Checkpoints(tmp_path, keep=1).claim():
            raise AssertionError("two runs have one folder")
        assert partial.exists()
    with Checkpoints(tmp_path).claim():
        assert list(tmp_path.iterdir()) == []


def test_other_entries_with_a_checkpoint_s_name_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-00000007.safetensors").mkdir()
    (tmp_path / ".checkpoint-00000003.safetensors.tmp").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "checkpoint-00000009.safetensors")
    before = set(tmp_path.iterdir())
    with Checkpoints(tmp_path).claim():
        paths = written(tmp_path, count=5, keep=2)
    assert [path for path, _, _ in Checkpoints(tmp_path).read()] == paths
    assert set(tmp_path.iterdir()) == before | set(paths) and len(paths) == 2


@pytest.mark.parametrize("folder", ["here", "", 3, "/a\0b", "/tmp/\ud800x", b"/tmp", None])
def test_an_impossible_folder_is_refused(folder: Any) -> None:
    with pytest.raises(ConfigError, match=r"^folder="):
        Checkpoints(folder)


def test_a_folder_without_locks_or_directory_syncs_is_used_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a network disk, or on a system that cannot open folders."""
    fcntl = pytest.importorskip("fcntl", reason="this system has no locks of this kind")
    opens = os.open

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    def no_folders(path: Any, flags: int, *more: Any) -> int:
        if Path(path).is_dir() and claimed:
            raise PermissionError(13, "Permission denied")
        return opens(path, flags, *more)

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(os, "open", no_folders)
    claimed = False
    with caplog.at_level(logging.WARNING, logger="flwr"), Checkpoints(tmp_path).claim():
        claimed = True
        (path,) = written(tmp_path)
        read_file(path)
    assert f"{tmp_path} cannot be locked (No locks available)" in caplog.text


# --- fingerprints -------------------------------------------------------------------------------


def a_rule(rows: Tensor, weights: Tensor) -> Tensor:
    return rows[0]


class Plain:
    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        return rows[0]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (CTMA(GeometricMedian(), 0.3), "CTMA(base=GeometricMedian(), byz_fraction=0.3)"),
        (a_rule, "a_rule"),
        (Plain(), "Plain"),
        ((1, None, "x"), "[1, None, 'x']"),
    ],
)
def test_a_rule_is_described_with_its_settings_and_without_addresses(
    rule: object, text: str
) -> None:
    assert described(rule) == text


def test_the_same_run_may_resume_and_what_differs_is_named() -> None:
    own = run_fingerprint(fresh(), CoordinateWiseMedian())
    check_fingerprint(own, own, "checkpoint-1")
    assert own["initial_arrays"].startswith("parameters w torch.float32 (2, 2); buffers mean")
    for name in own:
        with pytest.raises(ConfigError, match=f"^{name}=.*when checkpoint-1 was written: other"):
            check_fingerprint({**own, name: "other"}, own, "checkpoint-1")


def test_a_checkpoint_contains_every_table() -> None:
    document, _ = dump(fresh(), position_at(1.0, fresh()), {})
    assert document["tables"].keys() == {field.name for field in fields(Tables)}
