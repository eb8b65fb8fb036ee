"""All of a run as a document and tensors, and back: what a checkpoint holds.

What a rule keeps up to date is not in it: it follows from rows and counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from flwr_byzasync.checkpoints.codec import MisfitError, pack, types_of, unpack
from flwr_byzasync.core.pending_evaluations import EvaluationRequest, PendingEvaluations
from flwr_byzasync.core.state import InFlightQuery, Node, ServerState, Tables
from flwr_byzasync.core.statistics import RoundStart
from flwr_byzasync.errors import ConfigError

SETTINGS = frozenset({"layout", "optimizer", "policy"})
"""Fields of `ServerState` that whoever resumes passes again. `tables` are saved by `_rows_of`."""
CLOCK: Mapping[type, tuple[str, ...]] = {
    Node: ("due",), InFlightQuery: ("sent_at",), RoundStart: ("at",), EvaluationRequest: ("since",), PendingEvaluations: ("looked",)
}  # fmt: skip
"""Fields that are seconds of a clock: another process's clock shows others."""


@dataclass(frozen=True)
class Position:
    """Where a run is, beside the server's state.

    Parameters
    ----------
    now : float
        What the clock showed.
    elapsed : float
        Seconds since the run began, in all its processes.
    server_round, size : int
        The round being played, and accepted replies in a round.
    mark : Mark
        What had been reached when that round began.
    connected : tuple of int
        Nodes that were connected.
    history : str
        Metrics of all rounds, a line of JSON each: of a long run they are many, and one text is
        written down as quickly as it is long.
    questions : Questions
        Evaluations by nodes that are under way.
    run_id : int
        Flower's id of the `flwr run`: no other one is answered its messages.
    """

    now: float
    elapsed: float
    server_round: int
    size: int
    round_start: RoundStart
    connected: tuple[int, ...] = ()
    history: str = ""
    evaluations: PendingEvaluations = field(default_factory=PendingEvaluations)
    run_id: int = 0


def dump(
    state: ServerState, position: Position, identity: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return all of a run as a document for JSON, and tensors by name.

    The tensors are not copied: write them before the next reply.
    """
    tensors: dict[str, Tensor] = {}
    document = {
        "identity": dict(identity),
        "position": pack(position, Position, tensors),
        "state": {k: pack(getattr(state, k), h, tensors) for k, h in _saved_types(state).items()},
        "tables": {name: _rows_of(state, name, tensors) for name in types_of(Tables)},
    }
    return document, tensors


def load(
    document: Mapping[str, Any], tensors: Mapping[str, Tensor], fresh: ServerState, now: float
) -> tuple[ServerState, Position]:
    """Return state and position as they were, with the times of this process's clock.

    Parameters
    ----------
    document, tensors
        As `dump` made them.
    fresh : ServerState
        As `state.begin` makes it, of the same model, rule and optimizer; its tables are filled.
    now : float
        What this process's clock shows.

    Raises
    ------
    MisfitError
        If the document is of another version of this package.
    """
    placed = {name: tensor.to(fresh.iterates.x.device) for name, tensor in tensors.items()}
    types = _saved_types(fresh)
    given, rows, plain = (document.get(key) for key in ("state", "tables", "position"))
    if not isinstance(given, dict) or given.keys() != types.keys():
        raise MisfitError("the fields of ServerState differ")
    values = {name: unpack(given[name], types[name], placed) for name in types}
    position: Position = unpack(plain, Position, placed)
    shift = now - position.now
    # In a world that was copied the clock shows the same, and x + 0.0 keeps every bit.
    state = replace(fresh, **{name: shift_clock(value, shift) for name, value in values.items()})
    _fill(state, rows, placed)
    return state, shift_clock(replace(position, now=now), shift)


def run_fingerprint(state: ServerState, aggregator: object) -> dict[str, str]:
    """Return what must be the same when a run goes on, by the name of its argument."""
    groups, reading = ("parameters", "buffers", "counters"), state.policy.reading
    entries = [
        f"{group} {entry.name} {entry.dtype} {tuple(entry.shape)}"
        for group in groups
        for entry in getattr(state.layout, group).entries
    ]
    return {
        "initial_arrays": "; ".join(entries),
        "aggregator": described(aggregator),
        "optimizer": described(state.optimizer),
        **{f.name: described(getattr(reading, f.name)) for f in fields(reading)},
    }


def check_identity(saved: Mapping[str, str], own: Mapping[str, str], source: str) -> None:
    """Make sure that a run goes on with the model, rule and optimizer that it began with.

    Raises
    ------
    ConfigError
        Naming what differs.
    """
    for name, value in own.items():
        before = saved.get(name, "")
        if before != value:
            legal = f"what it was when {source} was written: {_difference(before, value)}"
            fix = "pass the same, or begin a new run in another folder"
            raise ConfigError(name, _difference(value, before), legal, fix)


def described(thing: object) -> str:
    """Return a rule or optimizer with its settings, the same in every process.

    Of an object that is no dataclass only its class is known, or its name if it is a function.
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
    # An optimizer of a third party may keep more than ours do, in a class of its own.
    return types | {"iterates": type(state.iterates)}


def _rows_of(state: ServerState, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    table = getattr(state.tables, name)
    rows = pack(table.view().rows, Tensor, tensors)
    return {
        "rows": rows,
        "counts": list(table.counts),
        "sent": list(table.sent),
        "step": table.step,
    }


def _fill(state: ServerState, plain: Any, tensors: Mapping[str, Tensor]) -> None:
    names = types_of(Tables)
    if not isinstance(plain, dict) or plain.keys() != names.keys():
        raise MisfitError("the tables differ")
    for name in names:
        table, saved = getattr(state.tables, name), plain[name]
        if not isinstance(saved, dict) or saved.keys() != {"rows", "counts", "sent", "step"}:
            raise MisfitError(f"the table of {name} differs")
        rows = unpack(saved["rows"], Tensor, tensors)
        counts, sent = (unpack(saved[key], tuple[int, ...], {}) for key in ("counts", "sent"))
        if rows.shape[0] != len(counts) or rows.shape[1:] != table.view().rows.shape[1:]:
            raise MisfitError(f"the table of {name} has another shape")
        table.fill(rows, counts, sent, unpack(saved["step"], int, {}))


def shift_clock(value: Any, shift: float) -> Any:
    """Add to every time of a clock in a value."""
    if isinstance(value, Mapping):
        return {key: shift_clock(item, shift) for key, item in value.items()}
    if type(value) in CLOCK:
        names = CLOCK[type(value)]
        value = replace(value, **{name: getattr(value, name) + shift for name in names})
    if isinstance(value, PendingEvaluations):
        return replace(value, requests=shift_clock(value.requests, shift))
    if isinstance(value, Position):
        inside = {"mark": value.round_start, "questions": value.evaluations}
        return replace(value, **{name: shift_clock(item, shift) for name, item in inside.items()})
    return value


def _difference(one: str, other: str) -> str:
    """Return the parts of a description that another one has not: a model may be long."""
    parts = [part for part in one.split("; ") if part not in other.split("; ")]
    return "; ".join(parts[:3]) or "in another order"
