"""Every kind of reply that a client may send: usable ones, and faults with their Reasons."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from flwr_byzasync import Reason
from flwr_byzasync.core.layout import ModelLayout
from flwr_byzasync.wire.arrays import record_of

CPU = torch.device("cpu")
MODEL = {
    "w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    "b": torch.tensor([5.0, 6.0], dtype=torch.float64),
    "mean": torch.tensor([7.0]),
    "n": torch.tensor(8),
}
LAYOUT = ModelLayout.of(MODEL, buffers=["mean"])
QUERY = 3


def good() -> RecordDict:
    return RecordDict(
        {
            "arrays": record_of({"w": MODEL["w"], "b": MODEL["b"]}),
            "buffers": record_of({"mean": MODEL["mean"], "n": MODEL["n"]}),
            "metrics": MetricRecord({"loss": 0.5}),
            "config": ConfigRecord({"byz.query": QUERY, "byz.payload": "momentum"}),
        }
    )


def numpy_array(value: np.ndarray, **lies: object) -> Array:
    array = Array(value)
    for name, lie in lies.items():
        setattr(array, name, lie)
    return array


def with_w(array: Array) -> RecordDict:
    content = good()
    content["arrays"]["w"] = array  # type: ignore[index]
    return content


def renamed(**names: str) -> RecordDict:
    content = good()
    old = dict(content.array_records["arrays"])
    content["arrays"] = ArrayRecord({names.get(key, key): array for key, array in old.items()})
    return content


def without(key: str) -> RecordDict:
    content = good()
    del content[key]
    return content


def plus(**changes: object) -> RecordDict:
    content = good()
    for key, value in changes.items():
        content[key] = value  # type: ignore[assignment]
    return content


def header_claiming(shape: tuple[int, ...]) -> bytes:
    stream = BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def header_with(text: str, version: int = 1) -> bytes:
    """A header that NumPy would not write."""
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode()


def no_content(message: Message) -> Message:
    reply = Message(good(), reply_to=message)
    reply.__dict__["_content"] = None
    return reply


def answered(message: Message, content: RecordDict | Error | None) -> Message:
    """Return a reply with this content; None: without any."""
    return no_content(message) if content is None else Message(content, reply_to=message)


def of_b(value: float) -> RecordDict:
    b = torch.full((2,), value, dtype=torch.float64)
    return plus(arrays=record_of({"w": MODEL["w"], "b": b}))


def with_buffers(**changes: torch.Tensor) -> RecordDict:
    return plus(buffers=record_of({"mean": MODEL["mean"], "n": MODEL["n"], **changes}))


def echoing(**config: object) -> RecordDict:
    return plus(config=ConfigRecord({key.replace("_", "."): v for key, v in config.items()}))


F4 = np.ones((2, 2), dtype=np.float32)
NAN, INF = F4 * np.float32("nan"), F4 * np.float32("inf")
NUMBER = Array(np.ones((), np.float32))
PICKLED = BytesIO()
np.save(PICKLED, np.array([{"evil": 1}], dtype=object), allow_pickle=True)
ZIPPED = BytesIO()
np.savez(ZIPPED, F4)

ZOO: dict[str, tuple[Callable[[], RecordDict | Error | None], Reason]] = {
    "error 0": (lambda: Error(0, "actor died"), Reason.CRASHED),
    "error 1": (lambda: Error(1, "cannot be loaded"), Reason.CLIENT_ERROR),
    "error 2": (lambda: Error(2, "line\n<class 'ValueError'>"), Reason.CLIENT_ERROR),
    "error 3": (lambda: Error(3, "gone"), Reason.LOST),
    "error 4": (lambda: Error(4, "reply gone"), Reason.LOST),
    "error 5": (lambda: Error(5, "node"), Reason.NODE_GONE),
    "error 6": (lambda: Error(6, "mod"), Reason.CLIENT_ERROR),
    "error 7": (lambda: Error(7, "bundle"), Reason.CLIENT_ERROR),
    "error 8": (lambda: Error(8, "stopped responding"), Reason.CRASHED),
    "error 99": (lambda: Error(99, ""), Reason.CLIENT_ERROR),
    "error -1": (lambda: Error(-1), Reason.CLIENT_ERROR),
    "error of a megabyte": (lambda: Error(2, "x" * 2**20), Reason.CLIENT_ERROR),
    "error of a million lines": (lambda: Error(2, "x\n" * 10**6), Reason.CLIENT_ERROR),
    "error that ends in a megabyte of space": (
        lambda: Error(2, "x" + " \n" * 2**19), Reason.CLIENT_ERROR
    ),
    "no content": (lambda: None, Reason.NO_CONTENT),
    "empty": (RecordDict, Reason.MISSING_RECORD),
    "no arrays": (lambda: without("arrays"), Reason.MISSING_RECORD),
    "no buffers": (lambda: without("buffers"), Reason.MISSING_RECORD),
    "no echo": (lambda: without("config"), Reason.MISSING_RECORD),
    "config is metrics": (lambda: plus(config=MetricRecord()), Reason.MISSING_RECORD),
    "arrays are metrics": (lambda: plus(arrays=MetricRecord()), Reason.MISSING_RECORD),
    "extra arrays": (lambda: plus(more=ArrayRecord()), Reason.EXTRA_RECORD),
    "another query": (
        lambda: echoing(byz_query=QUERY - 1, byz_payload="momentum"), Reason.WRONG_QUERY
    ),
    "query is text": (lambda: echoing(byz_query="3", byz_payload="momentum"), Reason.WRONG_QUERY),
    "query is true": (lambda: echoing(byz_query=True, byz_payload="momentum"), Reason.WRONG_QUERY),
    "query is float": (lambda: echoing(byz_query=3.0, byz_payload="momentum"), Reason.WRONG_QUERY),
    "query is a list": (lambda: echoing(byz_query=[3], byz_payload="momentum"), Reason.WRONG_QUERY),
    "no query": (lambda: echoing(byz_payload="momentum"), Reason.WRONG_QUERY),
    "wrong payload": (lambda: echoing(byz_query=QUERY, byz_payload="model"), Reason.WRONG_PAYLOAD),
    "payload in bytes": (
        lambda: echoing(byz_query=QUERY, byz_payload=b"momentum"), Reason.WRONG_PAYLOAD
    ),
    "payload of a million numbers": (
        lambda: echoing(byz_query=QUERY, byz_payload=[0] * 10**6), Reason.WRONG_PAYLOAD
    ),
    "payload of a megabyte": (
        lambda: echoing(byz_query=QUERY, byz_payload=b"x" * 2**20), Reason.WRONG_PAYLOAD
    ),
    "no payload": (lambda: echoing(byz_query=QUERY), Reason.WRONG_PAYLOAD),
    "renamed": (lambda: renamed(w="v"), Reason.WRONG_NAMES),
    "a name of a megabyte": (lambda: renamed(w="v\n" * 2**19), Reason.WRONG_NAMES),
    "reordered": (
        lambda: plus(arrays=record_of({"b": MODEL["b"], "w": MODEL["w"]})),
        Reason.WRONG_NAMES,
    ),
    "missing array": (
        lambda: plus(arrays=record_of({"w": MODEL["w"]})),
        Reason.WRONG_NAMES,
    ),
    "one array too many": (
        lambda: plus(arrays=record_of({k: MODEL[k] for k in ("w", "b", "mean")})),
        Reason.WRONG_NAMES,
    ),
    "no array at all": (lambda: plus(arrays=ArrayRecord()), Reason.WRONG_NAMES),
    "ten thousand arrays": (
        lambda: plus(arrays=ArrayRecord({f"k{i}": NUMBER for i in range(10_000)})),
        Reason.WRONG_NAMES,
    ),
    "wrong shape": (lambda: with_w(Array(F4.reshape(4))), Reason.WRONG_SHAPE),
    "wrong rank": (lambda: with_w(Array(F4.reshape(1, 2, 2))), Reason.WRONG_SHAPE),
    "empty array": (lambda: with_w(Array(F4[:0])), Reason.WRONG_SHAPE),
    "rank zero": (lambda: with_w(NUMBER), Reason.WRONG_SHAPE),
    "gigantic array": (lambda: with_w(Array(np.ones(2**20, np.float32))), Reason.WRONG_SHAPE),
    "gigantic claim": (lambda: with_w(numpy_array(F4, shape=(2**62, 2**62))), Reason.WRONG_SHAPE),
    "thousand dimensions": (lambda: with_w(numpy_array(F4, shape=(1,) * 1000)), Reason.WRONG_SHAPE),
    "million dimensions": (
        lambda: with_w(numpy_array(F4, shape=[1] * 10**6)), Reason.WRONG_SHAPE
    ),
    "a size of a million bits": (
        lambda: with_w(numpy_array(F4, shape=(2**10**6, 2))), Reason.WRONG_SHAPE
    ),
    "negative shape": (lambda: with_w(numpy_array(F4, shape=(-2, -2))), Reason.WRONG_SHAPE),
    "no shape": (lambda: with_w(numpy_array(F4, shape=None)), Reason.UNREADABLE),
    "wrong dtype": (lambda: with_w(Array(F4.astype(np.float64))), Reason.WRONG_DTYPE),
    "integers": (lambda: with_w(Array(F4.astype(np.int64))), Reason.WRONG_DTYPE),
    "complex": (lambda: with_w(Array(F4.astype(np.complex64))), Reason.WRONG_DTYPE),
    "big-endian": (lambda: with_w(Array(F4.astype(">f4"))), Reason.WRONG_DTYPE),
    "half precision": (lambda: with_w(Array(F4.astype(np.float16))), Reason.WRONG_DTYPE),
    "text": (lambda: with_w(Array(F4.astype(str))), Reason.WRONG_DTYPE),
    "claims objects": (lambda: with_w(numpy_array(F4, dtype="object")), Reason.WRONG_DTYPE),
    "claims a long dtype": (lambda: with_w(numpy_array(F4, dtype="f" * 2**20)), Reason.WRONG_DTYPE),
    "dtype is another line of the log": (
        lambda: with_w(numpy_array(F4, dtype="f4\n[ROUND 9/9]\x1b[2J")), Reason.WRONG_DTYPE
    ),
    "dtype is a number": (lambda: with_w(numpy_array(F4, dtype=4)), Reason.UNREADABLE),
    "fields": (
        lambda: with_w(numpy_array(np.ones((2, 2), "f4,f4"), dtype="float32")), Reason.WRONG_DTYPE
    ),
    "nan": (lambda: with_w(Array(NAN)), Reason.NON_FINITE),
    "inf": (lambda: with_w(Array(INF)), Reason.NON_FINITE),
    "minus inf in float64": (lambda: of_b(-np.inf), Reason.NON_FINITE),
    "nan in a buffer": (
        lambda: with_buffers(mean=torch.tensor([torch.nan])), Reason.NON_FINITE
    ),
    "integers in a buffer": (lambda: with_buffers(mean=torch.tensor([7])), Reason.WRONG_DTYPE),
    "a fraction in a counter": (lambda: with_buffers(n=torch.tensor(8.5)), Reason.WRONG_DTYPE),
    "a counter of another rank": (lambda: with_buffers(n=torch.tensor([8])), Reason.WRONG_SHAPE),
    "one buffer too many": (lambda: with_buffers(k=torch.tensor(8)), Reason.WRONG_NAMES),
    "norm beyond the rules": (lambda: of_b(1e151), Reason.OVERFLOW),
    "square overflows": (lambda: of_b(1e200), Reason.OVERFLOW),
    "garbage": (lambda: with_w(numpy_array(F4, data=b"garbage")), Reason.UNREADABLE),
    "data is text": (lambda: with_w(numpy_array(F4, data="text")), Reason.UNREADABLE),
    "no data": (lambda: with_w(numpy_array(F4, data=None)), Reason.UNREADABLE),
    "no bytes": (lambda: with_w(numpy_array(F4, data=b"")), Reason.UNREADABLE),
    "cut": (lambda: with_w(numpy_array(F4, data=Array(F4).data[:-1])), Reason.UNREADABLE),
    "longer": (lambda: with_w(numpy_array(F4, data=Array(F4).data + b"x")), Reason.UNREADABLE),
    "pickle": (
        lambda: with_w(numpy_array(F4, data=PICKLED.getvalue())),
        Reason.WRONG_DTYPE,
    ),
    "zip": (lambda: with_w(numpy_array(F4, data=ZIPPED.getvalue())), Reason.UNREADABLE),
    "stype": (lambda: with_w(numpy_array(F4, stype="torch")), Reason.UNREADABLE),
    "lying dtype": (
        lambda: with_w(numpy_array(F4.astype(np.float64), dtype="float32")),
        Reason.WRONG_DTYPE,
    ),
    "lying shape": (
        lambda: with_w(numpy_array(np.ones(5, np.float32), shape=(2, 2))),
        Reason.WRONG_SHAPE,
    ),
    "claims a terabyte": (
        lambda: with_w(numpy_array(F4, data=header_claiming((2**38,)))),
        Reason.WRONG_SHAPE,
    ),
    "claims what it lacks": (
        lambda: with_w(numpy_array(F4, data=header_claiming((2, 2)))),
        Reason.UNREADABLE,
    ),
    "negative sizes in the header": (
        lambda: with_w(numpy_array(F4, data=header_claiming((-2, -2)))), Reason.WRONG_SHAPE
    ),
    "header is code": (
        lambda: with_w(numpy_array(F4, data=header_with("__import__('os')"))), Reason.UNREADABLE
    ),
    "header is nested": (
        lambda: with_w(numpy_array(F4, data=header_with("(" * 9000))), Reason.UNREADABLE
    ),
    "header lacks a key": (
        lambda: with_w(numpy_array(F4, data=header_with("{'descr': '<f4'}"))), Reason.UNREADABLE
    ),
    "header of a megabyte": (
        lambda: with_w(numpy_array(F4, data=header_with(" " * 2**20, 2))), Reason.UNREADABLE
    ),
    "header of 4 GB": (
        lambda: with_w(numpy_array(F4, data=b"\x93NUMPY\x02\x00\xff\xff\xff\xff")),
        Reason.UNREADABLE,
    ),
    "version 9": (
        lambda: with_w(numpy_array(F4, data=b"\x93NUMPY\x09\x00")), Reason.UNREADABLE
    ),
}  # fmt: skip
"""Faults, how to build them (None: a message without content), and what each is counted as."""

USABLE: dict[str, Callable[[], RecordDict]] = {
    "good": good,
    "in Fortran order": lambda: with_w(Array(np.asfortranarray(MODEL["w"].numpy()))),
    "huge": lambda: with_w(Array(F4 * np.float32(1e30))),
    "norm at the limit": lambda: of_b(1e149),
    "no metrics": lambda: without("metrics"),
    "counter at its end": lambda: with_buffers(n=torch.tensor(2**63 - 1)),
    "metrics are config": lambda: plus(metrics=ConfigRecord({"a": 1.0})),
    "a trillion examples": lambda: plus(metrics=MetricRecord({"num-examples": 10**12})),
    "negative examples": lambda: plus(metrics=MetricRecord({"num-examples": -1})),
    "too large a number": lambda: plus(metrics=MetricRecord({"num-examples": 10**400})),
    "nan metrics": lambda: plus(metrics=MetricRecord({"num-examples": float("nan")})),
    "list metrics": lambda: plus(metrics=MetricRecord({"num-examples": [1.0] * 10_000})),
    "megabytes of keys": lambda: plus(
        metrics=MetricRecord({f"{i}" * 500: 1.0 for i in range(1000)})
    ),
    "as many metrics as are looked at": lambda: plus(
        metrics=MetricRecord({f"{i}": float(i) for i in range(100)})
    ),
    "more metrics and config": lambda: plus(more=MetricRecord({"a": 1}), c=ConfigRecord({"b": 2})),
}
"""Usable replies, however strange the records beside the arrays."""
