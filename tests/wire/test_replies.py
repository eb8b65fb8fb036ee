"""Whatever a client sends becomes an Update or a Reason; it never raises."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync import ConfigError, Reason
from flwr_byzasync.core.layout import ModelLayout
from flwr_byzasync.core.state import Rejected, Update
from flwr_byzasync.wire.arrays import record_of, tensors_of
from flwr_byzasync.wire.keys import MessageFormat
from flwr_byzasync.wire.queries import encode_query, model_record
from flwr_byzasync.wire.replies import MAX_METRICS, decode_reply
from tests.wire.zoo import (
    CPU,
    F4,
    LAYOUT,
    MODEL,
    QUERY,
    USABLE,
    ZOO,
    answered,
    echoing,
    good,
    numpy_array,
    plus,
    renamed,
    with_w,
)


@pytest.fixture
def decode(message: Message) -> Callable[[RecordDict | Error | None], Update | Rejected]:
    def decoded(content: RecordDict | Error | None) -> Update | Rejected:
        reply = answered(message, content)
        return decode_reply(reply, LAYOUT, CPU, QUERY, MessageFormat())

    return decoded


@pytest.mark.parametrize("name", ZOO)
def test_a_hostile_reply_becomes_its_reason(
    name: str, decode: Callable[[RecordDict | Error | None], Update | Rejected]
) -> None:
    make, reason = ZOO[name]
    decoded = decode(make())
    assert isinstance(decoded, Rejected)
    assert decoded.reason is reason


@pytest.mark.parametrize("name", ZOO)
def test_what_the_log_says_of_a_reply_is_one_short_line(
    name: str, decode: Callable[[RecordDict | Error | None], Update | Rejected]
) -> None:
    decoded = decode(ZOO[name][0]())
    assert isinstance(decoded, Rejected)
    assert decoded.detail.isprintable() and len(decoded.detail) <= 300


@given(text=st.text(st.characters(), max_size=300))
def test_no_text_of_a_client_reaches_the_log_raw(text: str, message: Message) -> None:
    """Terminal escapes, line breaks of any kind, and what reverses the direction of writing."""
    contents = (
        Error(2, text),
        renamed(w=text or "v"),
        with_w(numpy_array(F4, dtype=text)),
        echoing(byz_query=QUERY, byz_payload=text),
        echoing(byz_query=QUERY, byz_payload=text.encode("utf-8", "replace")),
    )
    for content in contents:
        decoded = decode_reply(answered(message, content), LAYOUT, CPU, QUERY, MessageFormat())
        if isinstance(decoded, Rejected):  # a text may be the right dtype
            assert decoded.detail.isprintable() and len(decoded.detail) <= 300


def test_an_error_s_last_line_is_shown_with_its_control_characters_escaped(
    decode: Callable[[RecordDict | Error | None], Update | Rejected],
) -> None:
    text = "Traceback\n  in train\nValueError: \x1b[2J\u202eno µ\r\n"
    decoded = decode(Error(2, text))
    assert decoded == Rejected(Reason.CLIENT_ERROR, r"ValueError: \x1b[2J\u202eno µ")


@pytest.mark.parametrize("name", USABLE)
def test_what_comes_beside_usable_arrays_costs_a_reply_nothing(
    name: str, decode: Callable[[RecordDict | Error | None], Update | Rejected]
) -> None:
    decoded = decode(USABLE[name]())
    assert isinstance(decoded, Update)
    assert len(decoded.metrics) <= MAX_METRICS
    assert all(abs(value) < 1e300 for value in decoded.metrics.values())


def test_every_reason_that_decoding_can_return_is_in_the_zoo() -> None:
    elsewhere = {Reason.EXPIRED, Reason.UNSENT, Reason.UNSOLICITED}
    assert {reason for _, reason in ZOO.values()} == set(Reason) - elsewhere


def test_a_good_reply_becomes_its_vectors(
    decode: Callable[[RecordDict | Error | None], Update | Rejected],
) -> None:
    decoded = decode(good())
    assert isinstance(decoded, Update)
    assert decoded.vector.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert decoded.vector.dtype == torch.float64
    assert (decoded.buffers.tolist(), decoded.counters.tolist()) == ([7.0], [8])
    assert decoded.metrics == {"loss": 0.5}


def test_an_array_in_fortran_order_is_read_by_its_values(
    decode: Callable[[RecordDict | Error | None], Update | Rejected],
) -> None:
    decoded = decode(with_w(Array(np.asfortranarray(MODEL["w"].numpy()))))
    assert isinstance(decoded, Update)
    assert decoded.vector[:4].tolist() == [1.0, 2.0, 3.0, 4.0]


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=20),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_finite_vector_of_a_norm_up_to_the_limit_passes_and_no_other(
    values: list[float], dtype: torch.dtype, message: Message
) -> None:
    """In float32 squares overflow from 1e19 on: that alone must not cost a node its reply."""
    sent = torch.tensor(values, dtype=dtype) * (1e130 if dtype is torch.float64 else 1)
    content = plus(arrays=record_of({"w": sent}))
    del content["buffers"]
    reply, layout = (
        Message(content, reply_to=message),
        ModelLayout.of({"w": sent.new_zeros(len(sent))}),
    )
    decoded = decode_reply(reply, layout, CPU, QUERY, MessageFormat())
    norm = float(np.sqrt(np.sum(np.square(sent.double().numpy() / 1e150))))
    if not sent.isfinite().all():
        assert isinstance(decoded, Rejected) and decoded.reason is Reason.NON_FINITE
    elif norm > 1.0:
        assert isinstance(decoded, Rejected) and decoded.reason is Reason.OVERFLOW
    else:
        assert isinstance(decoded, Update) and torch.equal(decoded.vector, sent)


@pytest.mark.parametrize(
    ("metrics", "kept"),
    [
        (MetricRecord({"num-examples": 10**400}), {}),
        (MetricRecord({"a": float("nan"), "b": -5}), {"b": -5.0}),
        (MetricRecord({"a": [1.0, 2.0], "b": [1.0, float("inf")]}), {"a": (1.0, 2.0)}),
        (MetricRecord({"a": [1.0] * 1000, "b": []}), {}),
        (MetricRecord({"x" * 1000: 1.0}), {}),
        (MetricRecord({f"k{i}": 1.0 for i in range(1000)}), {}),
        (ConfigRecord({"a": 1.0}), {}),
    ],
)
def test_hostile_metrics_are_not_shown_and_cost_the_reply_nothing(
    metrics: object, kept: object, decode: Callable[[RecordDict | Error | None], Update | Rejected]
) -> None:
    decoded = decode(plus(metrics=metrics))
    assert isinstance(decoded, Update)
    assert decoded.metrics == kept


def test_an_array_as_numpy_writes_it_is_read_without_parsing_its_header(
    decode: Callable[[RecordDict | Error | None], Update | Rejected],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flwr_byzasync.wire.arrays._parsed_header", None)
    assert isinstance(decode(good()), Update)
    in_fortran_order = with_w(Array(np.asfortranarray(MODEL["w"].numpy())))
    assert decode(in_fortran_order) == Rejected(Reason.UNREADABLE, "TypeError")


@given(data=st.binary(max_size=300))
def test_no_bytes_in_an_array_can_raise(data: bytes, message: Message) -> None:
    reply = Message(with_w(numpy_array(F4, data=data)), reply_to=message)
    decoded = decode_reply(reply, LAYOUT, CPU, QUERY, MessageFormat())
    assert isinstance(decoded, Rejected)


@given(cut=st.integers(0, 200), junk=st.binary(min_size=1, max_size=20))
def test_no_damage_to_a_good_array_can_raise(cut: int, junk: bytes, message: Message) -> None:
    data = Array(MODEL["w"].numpy()).data
    damaged = data[:cut] + junk + data[cut + len(junk) :]
    reply = Message(with_w(numpy_array(F4, data=damaged)), reply_to=message)
    assert isinstance(decode_reply(reply, LAYOUT, CPU, QUERY, MessageFormat()), Update | Rejected)


def test_a_record_that_breaks_its_own_class_is_unreadable(message: Message) -> None:
    reply = Message(good(), reply_to=message)
    reply.content.__dict__["_data"]["arrays"].__dict__["_data"]["w"] = None
    decoded = decode_reply(reply, LAYOUT, CPU, QUERY, MessageFormat())
    assert decoded == Rejected(Reason.UNREADABLE, "AttributeError")


def test_a_query_carries_the_model_and_our_keys_beside_the_user_s() -> None:
    config = {"lr": 0.1, "byz.query": 1}
    point = LAYOUT.parameters.flatten(MODEL)
    content = encode_query(
        LAYOUT, point, torch.tensor([7.0]), torch.tensor([8]), config, MessageFormat()
    )
    config["lr"] = 9.0
    assert dict(content.config_records["config"]) == {"lr": 0.1, "byz.query": 1}
    sent = content.array_records["arrays"].to_torch_state_dict()
    assert list(sent) == ["w", "b"]
    assert all(torch.equal(sent[k], MODEL[k]) and sent[k].dtype == MODEL[k].dtype for k in sent)
    assert list(content.array_records["buffers"]) == ["mean", "n"]


def test_a_query_of_a_model_without_buffers_has_no_record_of_them() -> None:
    layout = ModelLayout.of({"w": MODEL["w"]})
    content = encode_query(
        layout, torch.ones(4), torch.empty(0), torch.empty(0), {}, MessageFormat()
    )
    assert set(content) == {"arrays", "config"}


def test_the_whole_model_comes_back_in_the_user_s_order() -> None:
    layout = ModelLayout.of(MODEL, buffers=["mean"])
    point = layout.parameters.flatten(MODEL)
    record = model_record(layout, point, torch.tensor([7.0]), torch.tensor([8]))
    back = record.to_torch_state_dict()
    assert list(back) == list(MODEL)
    assert all(torch.equal(back[k], MODEL[k]) and back[k].dtype == MODEL[k].dtype for k in MODEL)


def test_an_initial_array_of_text_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"initial_arrays\['t'\]"):
        tensors_of(ArrayRecord({"t": Array(np.array(["text"]))}))
