"""Whatever a client sends becomes an Update or a Reason; it never raises."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync import ConfigError, Reason, records
from flwr_byzasync.layout import ModelLayout
from flwr_byzasync.state import Rejected, Update

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
            "arrays": records.record_of({"w": MODEL["w"], "b": MODEL["b"]}),
            "buffers": records.record_of({"mean": MODEL["mean"], "n": MODEL["n"]}),
            "metrics": MetricRecord({"loss": 0.5}),
            "config": ConfigRecord({"byz.query": QUERY, "byz.payload": "momentum"}),
        }
    )


@pytest.fixture
def decode(message: Message) -> Callable[[RecordDict | Error], Update | Rejected]:
    def decoded(content: RecordDict | Error) -> Update | Rejected:
        reply = Message(content, reply_to=message)
        return records.decode_reply(reply, LAYOUT, CPU, QUERY, "momentum")

    return decoded


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


F4 = np.ones((2, 2), dtype=np.float32)
NAN, INF = F4 * np.float32("nan"), F4 * np.float32("inf")
PICKLED = BytesIO()
np.save(PICKLED, np.array([{"evil": 1}], dtype=object), allow_pickle=True)
ZIPPED = BytesIO()
np.savez(ZIPPED, F4)

ZOO: dict[str, tuple[Callable[[], RecordDict | Error], Reason]] = {
    "error 0": (lambda: Error(0, "actor died"), Reason.CRASHED),
    "error 2": (lambda: Error(2, "line\n<class 'ValueError'>"), Reason.CLIENT_ERROR),
    "error 3": (lambda: Error(3, "gone"), Reason.LOST),
    "error 5": (lambda: Error(5, "node"), Reason.NODE_GONE),
    "error 8": (lambda: Error(8, "stopped responding"), Reason.CRASHED),
    "error 99": (lambda: Error(99, ""), Reason.CLIENT_ERROR),
    "empty": (RecordDict, Reason.MISSING_RECORD),
    "no arrays": (lambda: without("arrays"), Reason.MISSING_RECORD),
    "no buffers": (lambda: without("buffers"), Reason.MISSING_RECORD),
    "no echo": (lambda: without("config"), Reason.MISSING_RECORD),
    "arrays are metrics": (lambda: plus(arrays=MetricRecord()), Reason.MISSING_RECORD),
    "extra arrays": (lambda: plus(more=ArrayRecord()), Reason.EXTRA_RECORD),
    "wrong query": (
        lambda: plus(config=ConfigRecord({"byz.query": 2, "byz.payload": "momentum"})),
        Reason.WRONG_QUERY,
    ),
    "query is text": (
        lambda: plus(config=ConfigRecord({"byz.query": "3", "byz.payload": "momentum"})),
        Reason.WRONG_QUERY,
    ),
    "query is true": (
        lambda: plus(config=ConfigRecord({"byz.query": True, "byz.payload": "momentum"})),
        Reason.WRONG_QUERY,
    ),
    "wrong payload": (
        lambda: plus(config=ConfigRecord({"byz.query": QUERY, "byz.payload": "model"})),
        Reason.WRONG_PAYLOAD,
    ),
    "renamed": (lambda: renamed(w="v"), Reason.WRONG_NAMES),
    "reordered": (
        lambda: plus(arrays=records.record_of({"b": MODEL["b"], "w": MODEL["w"]})),
        Reason.WRONG_NAMES,
    ),
    "missing array": (
        lambda: plus(arrays=records.record_of({"w": MODEL["w"]})),
        Reason.WRONG_NAMES,
    ),
    "wrong shape": (lambda: with_w(Array(F4.reshape(4))), Reason.WRONG_SHAPE),
    "wrong rank": (lambda: with_w(Array(F4.reshape(1, 2, 2))), Reason.WRONG_SHAPE),
    "empty array": (lambda: with_w(Array(F4[:0])), Reason.WRONG_SHAPE),
    "wrong dtype": (lambda: with_w(Array(F4.astype(np.float64))), Reason.WRONG_DTYPE),
    "integers": (lambda: with_w(Array(F4.astype(np.int64))), Reason.WRONG_DTYPE),
    "complex": (lambda: with_w(Array(F4.astype(np.complex64))), Reason.WRONG_DTYPE),
    "big-endian": (lambda: with_w(Array(F4.astype(">f4"))), Reason.WRONG_DTYPE),
    "nan": (lambda: with_w(Array(NAN)), Reason.NON_FINITE),
    "inf": (lambda: with_w(Array(INF)), Reason.NON_FINITE),
    "minus inf in float64": (
        lambda: plus(
            arrays=records.record_of({"w": MODEL["w"], "b": -torch.inf * torch.ones(2).double()})
        ),
        Reason.NON_FINITE,
    ),
    "nan in a buffer": (
        lambda: plus(
            buffers=records.record_of({"mean": torch.tensor([torch.nan]), "n": MODEL["n"]})
        ),
        Reason.NON_FINITE,
    ),
    "norm beyond the rules": (
        lambda: plus(
            arrays=records.record_of({"w": MODEL["w"], "b": 1e151 * torch.ones(2).double()})
        ),
        Reason.OVERFLOW,
    ),
    "square overflows": (
        lambda: plus(
            arrays=records.record_of({"w": MODEL["w"], "b": 1e200 * torch.ones(2).double()})
        ),
        Reason.OVERFLOW,
    ),
    "garbage": (lambda: with_w(numpy_array(F4, data=b"garbage")), Reason.UNREADABLE),
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
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_a_hostile_reply_becomes_its_reason(
    name: str, decode: Callable[[RecordDict | Error], Update | Rejected]
) -> None:
    make, reason = ZOO[name]
    decoded = decode(make())
    assert isinstance(decoded, Rejected)
    assert decoded.reason is reason


def test_a_good_reply_becomes_its_vectors(
    decode: Callable[[RecordDict | Error], Update | Rejected],
) -> None:
    decoded = decode(good())
    assert isinstance(decoded, Update)
    assert decoded.vector.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert decoded.vector.dtype == torch.float64
    assert (decoded.buffers.tolist(), decoded.counters.tolist()) == ([7.0], [8])
    assert decoded.metrics == {"loss": 0.5}


def test_an_array_in_fortran_order_is_read_by_its_values(
    decode: Callable[[RecordDict | Error], Update | Rejected],
) -> None:
    decoded = decode(with_w(Array(np.asfortranarray(MODEL["w"].numpy()))))
    assert isinstance(decoded, Update)
    assert decoded.vector[:4].tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("metrics", "kept"),
    [
        (MetricRecord({"num-examples": 10**400}), {}),
        (MetricRecord({"a": float("nan"), "b": -5, "c": [1.0, 2.0]}), {"b": -5.0}),
        (MetricRecord({"x" * 1000: 1.0}), {}),
        (MetricRecord({f"k{i}": 1.0 for i in range(1000)}), {}),
        (ConfigRecord({"a": 1.0}), {}),
    ],
)
def test_hostile_metrics_are_not_shown_and_cost_the_reply_nothing(
    metrics: object, kept: object, decode: Callable[[RecordDict | Error], Update | Rejected]
) -> None:
    decoded = decode(plus(metrics=metrics))
    assert isinstance(decoded, Update)
    assert decoded.metrics == kept


@given(data=st.binary(max_size=300))
def test_no_bytes_in_an_array_can_raise(data: bytes, message: Message) -> None:
    reply = Message(with_w(numpy_array(F4, data=data)), reply_to=message)
    decoded = records.decode_reply(reply, LAYOUT, CPU, QUERY, "momentum")
    assert isinstance(decoded, Rejected)


@given(cut=st.integers(0, 200), junk=st.binary(min_size=1, max_size=20))
def test_no_damage_to_a_good_array_can_raise(cut: int, junk: bytes, message: Message) -> None:
    data = Array(MODEL["w"].numpy()).data
    damaged = data[:cut] + junk + data[cut + len(junk) :]
    reply = Message(with_w(numpy_array(F4, data=damaged)), reply_to=message)
    assert isinstance(
        records.decode_reply(reply, LAYOUT, CPU, QUERY, "momentum"), Update | Rejected
    )


def test_a_record_that_breaks_its_own_class_is_unreadable(message: Message) -> None:
    reply = Message(good(), reply_to=message)
    reply.content.__dict__["_data"]["arrays"].__dict__["_data"]["w"] = None
    decoded = records.decode_reply(reply, LAYOUT, CPU, QUERY, "momentum")
    assert decoded == Rejected(Reason.UNREADABLE, "AttributeError")


def test_a_query_carries_the_model_and_our_keys_beside_the_user_s() -> None:
    config = {"lr": 0.1, "byz.query": 1}
    point = LAYOUT.parameters.flatten(MODEL)
    content = records.encode_query(LAYOUT, point, torch.tensor([7.0]), torch.tensor([8]), config)
    config["lr"] = 9.0
    assert dict(content.config_records["config"]) == {"lr": 0.1, "byz.query": 1}
    sent = content.array_records["arrays"].to_torch_state_dict()
    assert list(sent) == ["w", "b"]
    assert all(torch.equal(sent[k], MODEL[k]) and sent[k].dtype == MODEL[k].dtype for k in sent)
    assert list(content.array_records["buffers"]) == ["mean", "n"]


def test_a_query_of_a_model_without_buffers_has_no_record_of_them() -> None:
    layout = ModelLayout.of({"w": MODEL["w"]})
    content = records.encode_query(layout, torch.ones(4), torch.empty(0), torch.empty(0), {})
    assert set(content) == {"arrays", "config"}


def test_the_whole_model_comes_back_in_the_order_of_the_user() -> None:
    layout = ModelLayout.of(MODEL, buffers=["mean"])
    point = layout.parameters.flatten(MODEL)
    record = records.model_record(layout, point, torch.tensor([7.0]), torch.tensor([8]))
    back = record.to_torch_state_dict()
    assert list(back) == list(MODEL)
    assert all(torch.equal(back[k], MODEL[k]) and back[k].dtype == MODEL[k].dtype for k in MODEL)


def test_our_own_caller_s_strange_array_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"initial_arrays\['t'\]"):
        records.tensors_of(ArrayRecord({"t": Array(np.array(["text"]))}))
