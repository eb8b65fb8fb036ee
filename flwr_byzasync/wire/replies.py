"""Whatever a client sends becomes an Update or a Rejected here; nothing in it is believed."""

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from flwr_byzasync.core.contribution import PAYLOADS
from flwr_byzasync.core.layout import Layout, ModelLayout, has_norm
from flwr_byzasync.core.metrics import Metrics
from flwr_byzasync.core.state import Rejected, Update
from flwr_byzasync.errors import INFRASTRUCTURE_FAULTS, Reason
from flwr_byzasync.wire.arrays import RefusalError, read_record
from flwr_byzasync.wire.keys import BEFORE, BUFFERS, METRICS, PAYLOAD, QUERY, Wire

MAX_METRICS = 100
"""Metrics of one reply that are looked at, and numbers in one of them; more would only make a log
unreadable."""

# Codes of flwr's error replies, as numbers because their names differ between releases.
_REASON_OF_CODE = {
    0: Reason.CRASHED,
    3: Reason.LOST,
    4: Reason.LOST,
    5: Reason.NODE_GONE,
    8: Reason.CRASHED,
}


def decode_reply(
    reply: Message,
    layout: ModelLayout,
    device: torch.device,
    query: int,
    wire: Wire,
    before: bool = False,
) -> Update | Rejected:
    """Return what a reply is worth; never raises, whatever it holds.

    Parameters
    ----------
    reply : Message
        As it came off the network.
    layout : ModelLayout
        What the arrays must look like.
    device : torch.device
        Where the vectors go.
    query : int
        Id of the query that this message carried; a reply that is no model must echo it.
    wire : Wire
        How messages look. A reply says what it is; one that does not is a model.
    before : bool
        Whether a gradient at the node's last query was asked for.
    """
    try:
        if reply.has_error():
            return Rejected(_reason_of(reply), _last_line(reply.error.reason))
        if not reply.has_content():
            return Rejected(Reason.NO_CONTENT)
        content = reply.content
        if wire.payload == "model":
            return _model(content, layout, device, wire)
        return _vector(content, layout, device, query, wire, before)
    except RefusalError as refusal:
        return Rejected(refusal.reason, refusal.detail)
    except Exception as error:  # a record that breaks its own class is a client's fault too
        return Rejected(Reason.UNREADABLE, type(error).__name__)


def metrics_of(reply: Message) -> Metrics | None:
    """Return the finite numbers in a reply's first MetricRecord; None if it has none.

    Never raises, whatever the reply holds.
    """
    try:
        if reply.has_error() or not reply.has_content():
            return None
        records = list(reply.content.metric_records.values())
        return _metrics(records[0]) if records else None
    except Exception:  # a record that breaks its own class
        return None


def lost_on_the_way(reply: Message) -> bool:
    """Whether a reply is the network's error, which tells nothing about its node."""
    return bool(reply.has_error()) and _reason_of(reply) in INFRASTRUCTURE_FAULTS


def _vector(
    content: RecordDict,
    layout: ModelLayout,
    device: torch.device,
    query: int,
    wire: Wire,
    before: bool,
) -> Update:
    """Read the reply of a client of ours."""
    config = content.get(wire.configrecord_key)
    if not isinstance(config, ConfigRecord):
        told = "no ConfigRecord echoes the query: for a client that returns weights pass "
        raise RefusalError(Reason.MISSING_RECORD, told + "payload='model' to the strategy")
    _check_payload(config, wire)
    if type(config.get(QUERY)) is not int or config[QUERY] != query:
        raise RefusalError(Reason.WRONG_QUERY)
    wanted = {wire.arrayrecord_key: layout.parameters}
    others = Layout((*layout.buffers.entries, *layout.counters.entries))
    wanted |= {BUFFERS: others} if others.entries else {}
    wanted |= {BEFORE: layout.parameters} if before else {}
    arrays = {key: record for key, record in content.items() if isinstance(record, ArrayRecord)}
    for key in wanted:
        if key not in arrays:
            raise RefusalError(Reason.MISSING_RECORD, f"no ArrayRecord {key!r}")
    if len(arrays) > len(wanted):
        raise RefusalError(Reason.EXTRA_RECORD)
    parts = {key: read_record(arrays[key], wanted[key]) for key in wanted}
    rest = parts.get(BUFFERS, {})
    return Update(
        _flat(parts[wire.arrayrecord_key], layout.parameters).to(device),
        _flat(rest, layout.buffers).to(device),
        _flat(rest, layout.counters).to(device),
        _metrics(content.get(METRICS)),
        _flat(parts[BEFORE], layout.parameters).to(device) if before else None,
    )


def _model(content: RecordDict, layout: ModelLayout, device: torch.device, wire: Wire) -> Update:
    """Read the reply of a client that knows nothing of us: a model, and metrics by any name."""
    config = content.get(wire.configrecord_key)
    if isinstance(config, ConfigRecord):
        _check_payload(config, wire)
    arrays = list(content.array_records.values())
    if not arrays:
        raise RefusalError(Reason.MISSING_RECORD, "no ArrayRecord with the model's weights")
    if len(arrays) > 1:
        raise RefusalError(Reason.EXTRA_RECORD, "one ArrayRecord, the whole model, is expected")
    whole = read_record(arrays[0], layout.whole)
    metrics = list(content.metric_records.values())
    return Update(
        _flat(whole, layout.parameters).to(device),
        _flat(whole, layout.buffers).to(device),
        _flat(whole, layout.counters).to(device),
        _metrics(metrics[0] if metrics else None),
    )


def _check_payload(config: ConfigRecord, wire: Wire) -> None:
    said = config.get(PAYLOAD, "model")
    if said != wire.payload:
        told = f"it says {str(said)[:20]!r}"
        told += f": pass payload={said!r} to the strategy" if said in PAYLOADS else ""
        raise RefusalError(Reason.WRONG_PAYLOAD, told)


def _flat(arrays: Mapping[str, NDArray[np.generic]], layout: Layout) -> Tensor:
    """Copy a group's arrays into a new flat vector and make sure that it is finite."""
    flat = np.empty(layout.size, dtype=str(layout.dtype).removeprefix("torch."))
    start = 0
    for entry in layout.entries:
        flat[start : start + entry.size] = arrays[entry.name].reshape(-1)
        start += entry.size
    vector = torch.from_numpy(flat)
    if vector.is_floating_point() and not has_norm(vector):
        finite = bool(vector.isfinite().all())
        raise RefusalError(Reason.OVERFLOW if finite else Reason.NON_FINITE)
    return vector


def _metrics(record: object) -> Metrics:
    """Keep finite numbers; a strange metric costs a node nothing, since none is ever used."""
    if not isinstance(record, MetricRecord) or len(record) > MAX_METRICS:
        return {}
    kept: dict[str, float | tuple[float, ...]] = {}
    for name, value in record.items():
        if len(name) > 100:
            continue
        if not isinstance(value, list):
            if _is_finite(value):
                kept[name] = float(value)
        elif 0 < len(value) <= MAX_METRICS and all(map(_is_finite, value)):
            kept[name] = tuple(map(float, value))
    return kept


def _is_finite(value: object) -> bool:
    # NaN is not below anything, nor is an integer that no float can hold.
    return isinstance(value, int | float) and abs(value) < 1e300


def _reason_of(reply: Message) -> Reason:
    return _REASON_OF_CODE.get(reply.error.code, Reason.CLIENT_ERROR)


def _last_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return lines[-1][:200] if lines else ""
