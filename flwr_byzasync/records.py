"""Flower records <-> tensors. Whatever a client sends becomes an Update or a Rejected here.

Nothing is believed: not the metadata of an array, not its header's size, not the identity in a
reply. Host and device copies happen in this file only.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from flwr_byzasync.errors import ConfigError, Reason
from flwr_byzasync.layout import Layout, ModelLayout
from flwr_byzasync.state import Rejected, Update

BUFFERS = "buffers"
METRICS = "metrics"
QUERY = "byz.query"
COUNT = "byz.count"
PAYLOAD = "byz.payload"
ROUND = "server-round"
MAX_NORM = 1e150
"""Up to here the rules' squares and their sums stay inside float64."""
MAX_HEADER = 1000
"""Bytes of an array that its header must lie in: NumPy's parser takes 0.1 s for ten thousand."""
MAX_METRICS = 100
"""Metrics of one reply that are looked at; more would only make a log unreadable."""

# Codes of flwr's error replies, as numbers because their names differ between releases.
_REASON_OF_CODE = {
    0: Reason.CRASHED,
    3: Reason.LOST,
    4: Reason.LOST,
    5: Reason.NODE_GONE,
    8: Reason.CRASHED,
}


class RefusalError(Exception):
    """Carries a Reason out of the decoding."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def tensors_of(record: ArrayRecord) -> dict[str, Tensor]:
    """Return our own caller's arrays as CPU tensors.

    Raises
    ------
    ConfigError
        If an array cannot be read as a numeric NumPy array.
    """
    tensors = {}
    for name, array in record.items():
        try:
            tensors[name] = torch.from_numpy(np.array(array.numpy()))
        except (TypeError, ValueError) as error:
            fix = "pass for example ArrayRecord(model.state_dict())"
            raise ConfigError(f"initial_arrays[{name!r}]", str(error), "numeric", fix) from error
    return tensors


def record_of(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return named tensors as an ArrayRecord, copied to the host."""
    return ArrayRecord({name: Array(_host(tensor)) for name, tensor in tensors.items()})


def read_arrays(record: ArrayRecord, layout: Layout) -> dict[str, Tensor]:
    """Return a client's arrays, if they are what `layout` says, as new CPU tensors.

    Raises
    ------
    RefusalError
        If they are not, whatever is wrong with them.
    """
    arrays = _read_record(record, layout)
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def encode_query(
    layout: ModelLayout,
    point: Tensor,
    buffers: Tensor,
    counters: Tensor,
    config: Mapping[str, object],
    arrayrecord_key: str = "arrays",
    configrecord_key: str = "config",
) -> RecordDict:
    """Return the content of a query.

    Parameters
    ----------
    layout : ModelLayout
        Names and shapes.
    point, buffers, counters : Tensor
        Flat (d,) vectors of the three groups.
    config : mapping
        The user's train config and our own keys; copied, so that no message shares it.
    arrayrecord_key, configrecord_key : str
        Names of the records.
    """
    content = RecordDict({arrayrecord_key: record_of(layout.parameters.unflatten(point))})
    if layout.buffers.entries or layout.counters.entries:
        content[BUFFERS] = record_of(_others(layout, buffers, counters))
    content[configrecord_key] = ConfigRecord(dict(config))  # type: ignore[arg-type]
    return content


def model_record(
    layout: ModelLayout, point: Tensor, buffers: Tensor, counters: Tensor
) -> ArrayRecord:
    """Return the whole model in the order in which the user gave it."""
    parameters = layout.parameters.unflatten(point)
    return record_of(layout.merge(parameters, _others(layout, buffers, counters)))


def decode_reply(
    reply: Message,
    layout: ModelLayout,
    device: torch.device,
    query: int,
    payload: str,
    arrayrecord_key: str = "arrays",
    configrecord_key: str = "config",
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
        Id of the query that this message carried; the reply must echo it.
    payload : str
        The kind of vector that was asked for; the reply must echo it.
    arrayrecord_key, configrecord_key : str
        Names of the records.
    """
    try:
        if reply.has_error():
            reason = _REASON_OF_CODE.get(reply.error.code, Reason.CLIENT_ERROR)
            return Rejected(reason, _last_line(reply.error.reason))
        if not reply.has_content():
            return Rejected(Reason.NO_CONTENT)
        content = reply.content
        _check_echo(content.get(configrecord_key), query, payload)
        wanted = {arrayrecord_key: layout.parameters}
        others = Layout((*layout.buffers.entries, *layout.counters.entries))
        if others.entries:
            wanted[BUFFERS] = others
        arrays = _check_records(content, wanted)
        parts = {key: _read_record(arrays[key], wanted[key]) for key in wanted}
        vector = _flat(parts[arrayrecord_key], layout.parameters)
        buffers = _flat(parts.get(BUFFERS, {}), layout.buffers)
        counters = _flat(parts.get(BUFFERS, {}), layout.counters)
        metrics = _metrics(content.get(METRICS))
        return Update(vector.to(device), buffers.to(device), counters.to(device), metrics)
    except RefusalError as refusal:
        return Rejected(refusal.reason, refusal.detail)
    except Exception as error:  # a record that breaks its own class is a client's fault too
        return Rejected(Reason.UNREADABLE, type(error).__name__)


def _others(layout: ModelLayout, buffers: Tensor, counters: Tensor) -> dict[str, Tensor]:
    return {**layout.buffers.unflatten(buffers), **layout.counters.unflatten(counters)}


def _host(tensor: Tensor) -> NDArray[np.generic]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(tensor.shape)


def _check_echo(config: object, query: int, payload: str) -> None:
    if not isinstance(config, ConfigRecord):
        raise RefusalError(Reason.MISSING_RECORD, "no ConfigRecord echoes the query")
    if config.get(PAYLOAD) != payload:
        raise RefusalError(Reason.WRONG_PAYLOAD)
    if type(config.get(QUERY)) is not int or config[QUERY] != query:
        raise RefusalError(Reason.WRONG_QUERY)


def _check_records(content: RecordDict, wanted: Mapping[str, Layout]) -> dict[str, ArrayRecord]:
    arrays = {key: record for key, record in content.items() if isinstance(record, ArrayRecord)}
    for key in wanted:
        if key not in arrays:
            raise RefusalError(Reason.MISSING_RECORD, f"no ArrayRecord {key!r}")
    if len(arrays) > len(wanted):
        raise RefusalError(Reason.EXTRA_RECORD)
    return arrays


def _read_record(record: ArrayRecord, layout: Layout) -> dict[str, NDArray[np.generic]]:
    if tuple(record.keys()) != layout.names:
        raise RefusalError(Reason.WRONG_NAMES)
    return {e.name: _read_array(record[e.name], e.shape, e.dtype) for e in layout.entries}


def _read_array(array: Array, shape: tuple[int, ...], dtype: torch.dtype) -> NDArray[np.generic]:
    """Read an array without allocating what its header claims, and without pickle."""
    expected = np.dtype(str(dtype).removeprefix("torch."))
    if array.dtype != str(expected):
        raise RefusalError(Reason.WRONG_DTYPE, f"{array.dtype[:20]!r} instead of {expected}")
    if tuple(array.shape) != shape:
        raise RefusalError(Reason.WRONG_SHAPE, f"{str(array.shape)[:40]} instead of {shape}")
    if array.stype != "numpy.ndarray":
        raise RefusalError(Reason.UNREADABLE, "not a NumPy array")
    header = _header(shape, expected)
    # What every array has that NumPy wrote in C order: nothing to parse, nothing to believe.
    if array.data.startswith(header):
        fortran, start = False, len(header)
    else:
        fortran, start = _parsed_header(array.data, shape, expected)
    body = memoryview(array.data)[start:]
    if len(body) != expected.itemsize * math.prod(shape):
        raise RefusalError(Reason.UNREADABLE, "the data is shorter or longer than its header says")
    flat: NDArray[np.generic] = np.frombuffer(body, dtype=expected)
    return flat.reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=10_000)
def _header(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> bytes:
    """Return the header that NumPy writes for our own array of this shape and dtype."""
    stream = BytesIO()
    fields = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(stream, fields)
    return stream.getvalue()


def _parsed_header(
    data: bytes, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> tuple[bool, int]:
    """Return whether an array is in Fortran order, and where its values start."""
    stream = BytesIO(data[:MAX_HEADER])
    try:
        version = npy.read_magic(stream)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        true_shape, fortran, true_dtype = read(stream)
    except (ValueError, KeyError, EOFError, SyntaxError, TypeError, RecursionError) as error:
        raise RefusalError(Reason.UNREADABLE, type(error).__name__) from None
    if true_dtype != dtype:
        raise RefusalError(Reason.WRONG_DTYPE, f"the data is {true_dtype}")
    if tuple(true_shape) != shape:
        raise RefusalError(Reason.WRONG_SHAPE, f"the data is {str(true_shape)[:40]}")
    return fortran, stream.tell()


def _flat(arrays: Mapping[str, NDArray[np.generic]], layout: Layout) -> Tensor:
    """Copy a group's arrays into a new flat vector and make sure that it is finite."""
    flat = np.empty(layout.size, dtype=str(layout.dtype).removeprefix("torch."))
    start = 0
    for entry in layout.entries:
        flat[start : start + entry.size] = arrays[entry.name].reshape(-1)
        start += entry.size
    vector = torch.from_numpy(flat)
    if vector.is_floating_point() and not _has_norm(vector):
        finite = bool(vector.isfinite().all())
        raise RefusalError(Reason.OVERFLOW if finite else Reason.NON_FINITE)
    return vector


def _has_norm(vector: Tensor) -> bool:
    """Whether the norm is a number up to `MAX_NORM`; then every element is finite, too."""
    # No comparison with NaN is true. The first pass is several times as fast in float32; where
    # squares leave it, it says infinity, and the second one decides.
    norm = torch.linalg.vector_norm
    return float(norm(vector)) <= MAX_NORM or float(norm(vector, dtype=torch.float64)) <= MAX_NORM


def _metrics(record: object) -> dict[str, float]:
    """Keep finite scalars; a strange metric costs a node nothing, since none is ever used."""
    if not isinstance(record, MetricRecord) or len(record) > MAX_METRICS:
        return {}
    scalars = {k: v for k, v in record.items() if isinstance(v, int | float) and len(k) <= 100}
    return {k: float(v) for k, v in scalars.items() if abs(v) < 1e300}


def _last_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return lines[-1][:200] if lines else ""
