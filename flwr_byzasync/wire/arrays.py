"""Flower array records <-> tensors, with host and device copies.

Array metadata and header sizes are untrusted.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from flwr_byzasync._printable import printable
from flwr_byzasync.core.layout import Entry, Layout
from flwr_byzasync.errors import ConfigError, Reason

MAX_HEADER = 1000
"""Largest header of an array in bytes: NumPy's parser takes 0.1 s for ten thousand."""


class RejectedReplyError(Exception):
    """Ends the decoding of a reply with a Reason."""

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
    """Return a client's arrays as new CPU tensors.

    Raises
    ------
    RejectedReplyError
        If their names, order, shapes or dtypes differ from `layout`, or they are unreadable.
    """
    arrays = read_record(record, layout)
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


def _host(tensor: Tensor) -> NDArray[np.generic]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(tensor.shape)


def read_record(record: ArrayRecord, layout: Layout) -> dict[str, NDArray[np.generic]]:
    """Return a client's arrays as views of the received bytes, or raise `RejectedReplyError`."""
    names = tuple(record.keys())
    if names != layout.names:
        raise RejectedReplyError(Reason.WRONG_NAMES, _difference(names, layout.names))
    return {entry.name: _read_array(record[entry.name], entry) for entry in layout.entries}


def _difference(names: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """Return which name a client left out, and which one it added."""
    known = set(expected)
    missing = known.difference(names)  # not a set of the client's names: there may be millions
    first = next((name for name in expected if name in missing), None)
    extra = next((name for name in names if name not in known), None)
    parts = [] if first is None else [f"{first!r} is missing"]
    parts += [] if extra is None else [f"'{printable(extra, 40)}' is not in the model"]
    difference = " and ".join(parts) or "they are in another order"
    return f"{difference}: send every array of the query under its name, in its order"


def _read_array(array: Array, entry: Entry) -> NDArray[np.generic]:
    """Return an array without allocating what its header claims, and without pickle."""
    shape, name = entry.shape, entry.name
    expected = np.dtype(str(entry.dtype).removeprefix("torch."))
    if array.dtype != str(expected):
        detail = f"{name!r} is '{printable(array.dtype[:20])}': send {expected}, as in the query"
        raise RejectedReplyError(Reason.WRONG_DTYPE, detail)
    if len(array.shape) != len(shape) or tuple(array.shape) != shape:
        detail = f"{name!r} is {printable(array.shape, 40)}: send {shape}, as in the query"
        raise RejectedReplyError(Reason.WRONG_SHAPE, detail)
    if array.stype != "numpy.ndarray":
        raise RejectedReplyError(Reason.UNREADABLE, "not a NumPy array")
    header = _header(shape, expected)
    # The header of every array that NumPy wrote in C order: there is nothing to parse.
    if array.data.startswith(header):
        fortran, start = False, len(header)
    else:
        fortran, start = _parsed_header(array.data, shape, expected)
    body = memoryview(array.data)[start:]
    if len(body) != expected.itemsize * math.prod(shape):
        raise RejectedReplyError(
            Reason.UNREADABLE, "the data is shorter or longer than its header says"
        )
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
        raise RejectedReplyError(Reason.UNREADABLE, type(error).__name__) from None
    if true_dtype != dtype:
        raise RejectedReplyError(
            Reason.WRONG_DTYPE, f"the data is {printable(str(true_dtype), 40)}"
        )
    if tuple(true_shape) != shape:
        raise RejectedReplyError(Reason.WRONG_SHAPE, f"the data is {printable(true_shape, 40)}")
    return fortran, stream.tell()
