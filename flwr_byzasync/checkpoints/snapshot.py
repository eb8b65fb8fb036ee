"""A whole run as a document and tensors, and back: the content of a checkpoint.

What an incremental rule keeps is not in it: it follows from rows and weights.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from flwr_byzasync.checkpoints.codec import MisfitError, pack, shift_clock, types_of, unpack
from flwr_byzasync.checkpoints.content import Position, TableContent
from flwr_byzasync.checkpoints.validation import check_content
from flwr_byzasync.core.state import ServerState, Tables
from flwr_byzasync.errors import ConfigError

SETTINGS = frozenset({"layout", "optimizer", "policy"})
"""Fields of `ServerState` that whoever resumes passes again; `tables` become `TableContent`."""


def dump(
    state: ServerState, position: Position, fingerprint: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a whole run as a document for JSON, and tensors by name.

    The tensors are not copied: write them before the next reply.
    """
    tensors: dict[str, Tensor] = {}
    document = {
        "fingerprint": dict(fingerprint),
        "position": pack(position, Position, tensors),
        "state": {k: pack(getattr(state, k), h, tensors) for k, h in _saved_types(state).items()},
        "tables": {
            name: pack(TableContent.of(getattr(state.tables, name)), TableContent, tensors)
            for name in types_of(Tables)
        },
    }
    return document, tensors


def load(
    document: Mapping[str, Any], tensors: Mapping[str, Tensor], fresh: ServerState, now: float
) -> tuple[ServerState, Position]:
    """Return the state and position of a document, on this process's clock.

    Parameters
    ----------
    document, tensors
        From `dump`.
    fresh : ServerState
        From `initial_state`, of the same model, rule and optimizer; its tables are filled.
    now : float
        This process's clock.

    Raises
    ------
    MisfitError
        If the document is not one that `dump` could have written for this model, whatever is
        wrong with it; the tables of `fresh` are as before.
    """
    placed = {name: tensor.to(fresh.iterates.x.device) for name, tensor in tensors.items()}
    types = _saved_types(fresh)
    saved, rows, plain = (document.get(key) for key in ("state", "tables", "position"))
    values = _unpacked(saved, types, placed, "ServerState")
    position: Position = unpack(plain, Position, placed)
    declared = dict.fromkeys(types_of(Tables), TableContent)
    tables: dict[str, TableContent] = _unpacked(rows, declared, placed, "Tables")
    check_content(replace(fresh, **values), fresh.iterates, tables, position)
    shift = now - position.now
    # In a copied simulation the clock has not moved, and x + 0.0 keeps every bit.
    shifted = {name: shift_clock(value, types[name], shift) for name, value in values.items()}
    state = replace(fresh, **shifted)
    for name, table in tables.items():
        getattr(state.tables, name).fill(table.rows, table.counts, table.sent, table.step)
    return state, shift_clock(replace(position, now=now), Position, shift)


def run_fingerprint(state: ServerState, aggregator: object) -> dict[str, str]:
    """Return what must be the same when the run resumes, by the argument that sets it."""
    groups = ("parameters", "buffers", "counters")
    entries = [
        f"{group} {entry.name} {entry.dtype} {tuple(entry.shape)}"
        for group in groups
        for entry in getattr(state.layout, group).entries
    ]
    return {
        "initial_arrays": "; ".join(entries),
        "aggregator": described(aggregator),
        "optimizer": described(state.optimizer),
        "payload": described(state.policy.payload),
    }


def check_fingerprint(saved: Any, own: Mapping[str, str], source: str) -> None:
    """Make sure that a run resumes with the model, rule and optimizer that it began with.

    Raises
    ------
    ConfigError
        Naming what differs.
    MisfitError
        If what was saved is no fingerprint at all.
    """
    if not isinstance(saved, Mapping) or not all(isinstance(v, str) for v in saved.values()):
        raise MisfitError("it has no fingerprint")
    for name, value in own.items():
        before = saved.get(name, "")
        if before != value:
            legal = f"what it was when {source} was written: {_difference(before, value)}"
            fix = "pass the same, or begin a new run in another folder"
            raise ConfigError(name, _difference(value, before), legal, fix)


def described(thing: object) -> str:
    """Return a rule or optimizer with its settings, the same in every process.

    For an object that is not a dataclass this is its class alone, or its name if it is a
    function.
    """
    if is_dataclass(thing) and not isinstance(thing, type):
        inside = [f"{f.name}={described(getattr(thing, f.name))}" for f in fields(thing)]
        return f"{type(thing).__qualname__}({', '.join(inside)})"
    if isinstance(thing, bool | int | float | str | None):
        return repr(thing)
    if isinstance(thing, tuple | list):
        return f"[{', '.join(described(item) for item in thing)}]"
    return str(getattr(thing, "__qualname__", type(thing).__qualname__))


def _saved_types(state: ServerState) -> dict[str, Any]:
    types = {k: h for k, h in types_of(ServerState).items() if k not in SETTINGS | {"tables"}}
    # A third party's optimizer may keep more than ours, in a class of its own.
    return types | {"iterates": type(state.iterates)}


def _unpacked(
    plain: Any, types: Mapping[str, Any], tensors: Mapping[str, Tensor], owner: str
) -> dict[str, Any]:
    if not isinstance(plain, dict) or plain.keys() != types.keys():
        raise MisfitError(f"the fields of {owner} differ")
    return {name: unpack(plain[name], types[name], tensors) for name in types}


def _difference(one: str, other: str) -> str:
    """Return the parts of a description that the other does not have: a model may be long."""
    parts = [part for part in one.split("; ") if part not in other.split("; ")]
    return "; ".join(parts[:3]) or "in another order"
