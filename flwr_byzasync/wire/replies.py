"""Replies become an `Update` or a `Rejected` here; nothing in them is trusted."""

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from flwr_byzasync._printable import printable
from flwr_byzasync.core.contribution import PAYLOADS
from flwr_byzasync.core.layout import Layout, ModelLayout, norm_within_limit
from flwr_byzasync.core.metrics import Metrics
from flwr_byzasync.core.state import Rejected, Update
from flwr_byzasync.errors import INFRASTRUCTURE_FAULTS, Reason
from flwr_byzasync.wire.arrays import RejectedReplyError, read_record
from flwr_byzasync.wire.keys import (
    BUFFERS,
    METRICS,
    MODEL,
    PAYLOAD,
    PREVIOUS,
    QUERY,
    MessageFormat,
)

MAX_METRICS = 100
"""Largest number of metrics in a reply, and of numbers in one of them; more would only make a log
unreadable."""

TAIL = 4000
"""Characters at the end of an error reply in which its last line is looked for."""

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
    message_format: MessageFormat,
    with_previous: bool = False,
) -> Update | Rejected:
    """Decode and validate a reply; never raises, whatever it contains.

    Parameters
    ----------
    reply : Message
        As received.
    layout : ModelLayout
        The expected arrays.
    device : torch.device
        Where the vectors go.
    query : int
        Id of the query in the message; a reply other than a model must echo it.
    message_format : MessageFormat
        Names of the records. A reply names its kind; one that does not is a model.
    with_previous : bool
        Whether a gradient at the node's previous query was requested.
    """
    try:
        if reply.has_error():
            return Rejected(_reason_of(reply), _last_line(reply.error.reason))
        if not reply.has_content():
            return Rejected(Reason.NO_CONTENT)
        content = reply.content
        if message_format.payload == MODEL:
            return _model(content, layout, device, message_format)
        return _vector(content, layout, device, query, message_format, with_previous)
    except RejectedReplyError as error:
        return Rejected(error.reason, error.detail)
    except Exception as error:  # a record that breaks its own class: the client's fault
        return Rejected(Reason.UNREADABLE, type(error).__name__)


def metrics_of(reply: Message) -> Metrics | None:
    """Return the finite numbers in a reply's first MetricRecord; None if it has none.

    Never raises, whatever the reply contains.
    """
    try:
        if reply.has_error() or not reply.has_content():
            return None
        records = list(reply.content.metric_records.values())
        return _metrics(records[0]) if records else None
    except Exception:  # a record that breaks its own class
        return None


def lost_on_the_way(reply: Message) -> bool:
    """Whether a reply is an error of the network, which says nothing about its node."""
    return bool(reply.has_error()) and _reason_of(reply) in INFRASTRUCTURE_FAULTS


def _vector(
    content: RecordDict,
    layout: ModelLayout,
    device: torch.device,
    query: int,
    message_format: MessageFormat,
    with_previous: bool,
) -> Update:
    """Decode the reply of a `client_app`."""
    config = content.get(message_format.configrecord_key)
    if not isinstance(config, ConfigRecord):
        detail = "no ConfigRecord echoes the query: for a client that returns weights pass "
        raise RejectedReplyError(Reason.MISSING_RECORD, f"{detail}payload=Models() to the strategy")
    _check_payload(config, message_format)
    if type(config.get(QUERY)) is not int or config[QUERY] != query:
        raise RejectedReplyError(Reason.WRONG_QUERY)
    key = message_format.arrayrecord_key
    expected = {key: layout.parameters}
    others = Layout((*layout.buffers.entries, *layout.counters.entries))
    expected |= {BUFFERS: others} if others.entries else {}
    expected |= {PREVIOUS: layout.parameters} if with_previous else {}
    arrays = {key: record for key, record in content.items() if isinstance(record, ArrayRecord)}
    for name in expected:
        if name not in arrays:
            raise RejectedReplyError(Reason.MISSING_RECORD, f"no ArrayRecord {name!r}")
    if len(arrays) > len(expected):
        raise RejectedReplyError(Reason.EXTRA_RECORD)
    parts = {name: read_record(arrays[name], expected[name]) for name in expected}
    rest = parts.get(BUFFERS, {})
    return Update(
        _flat(parts[key], layout.parameters).to(device),
        _flat(rest, layout.buffers).to(device),
        _flat(rest, layout.counters).to(device),
        _metrics(content.get(METRICS)),
        _flat(parts[PREVIOUS], layout.parameters).to(device) if with_previous else None,
    )


def _model(
    content: RecordDict, layout: ModelLayout, device: torch.device, message_format: MessageFormat
) -> Update:
    """Decode the reply of a client that knows only FedAvg: a model, and metrics by any name."""
    config = content.get(message_format.configrecord_key)
    if isinstance(config, ConfigRecord):
        _check_payload(config, message_format)
    arrays = list(content.array_records.values())
    if not arrays:
        detail = "no ArrayRecord with the model's weights"
        raise RejectedReplyError(Reason.MISSING_RECORD, detail)
    if len(arrays) > 1:
        detail = "one ArrayRecord, the whole model, is expected"
        raise RejectedReplyError(Reason.EXTRA_RECORD, detail)
    whole = read_record(arrays[0], layout.whole)
    metrics = list(content.metric_records.values())
    return Update(
        _flat(whole, layout.parameters).to(device),
        _flat(whole, layout.buffers).to(device),
        _flat(whole, layout.counters).to(device),
        _metrics(metrics[0] if metrics else None),
    )


def _check_payload(config: ConfigRecord, message_format: MessageFormat) -> None:
    named = config.get(PAYLOAD, MODEL)
    if named != message_format.payload:
        detail = f"it is a '{printable(named, 20)}'"
        kinds = [kind.__name__ for kind in PAYLOADS if named == kind.NAME]
        detail += f": pass payload={kinds[0]}() to the strategy" if kinds else ""
        raise RejectedReplyError(Reason.WRONG_PAYLOAD, detail)


def _flat(arrays: Mapping[str, NDArray[np.generic]], layout: Layout) -> Tensor:
    """Return a group's arrays as a new flat vector that is finite."""
    flat = np.empty(layout.size, dtype=str(layout.dtype).removeprefix("torch."))
    start = 0
    for entry in layout.entries:
        flat[start : start + entry.size] = arrays[entry.name].reshape(-1)
        start += entry.size
    vector = torch.from_numpy(flat)
    if vector.is_floating_point() and not norm_within_limit(vector):
        finite = bool(vector.isfinite().all())
        raise RejectedReplyError(Reason.OVERFLOW if finite else Reason.NON_FINITE)
    return vector


def _metrics(record: object) -> Metrics:
    """Return the finite numbers of a MetricRecord; others are left out, since none is ever used."""
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
    return isinstance(value, int | float) and -1e300 < value < 1e300


def _reason_of(reply: Message) -> Reason:
    return _REASON_OF_CODE.get(reply.error.code, Reason.CLIENT_ERROR)


def _last_line(text: str | None) -> str:
    """Return the last line of an error, looking no further back than `TAIL`."""
    lines = (text or "")[-TAIL:].strip().splitlines()
    return printable(lines[-1]) if lines else ""
