"""What a client sends is shown as short text on one line, at a cost that does not grow with it."""

import logging
import tracemalloc
from typing import Any

import pytest
from flwr.app import MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync._printable import MAX_METRICS_SHOWN, printable, printable_metrics
from flwr_byzasync.core.state import ServerState
from flwr_byzasync.core.statistics import RoundStart
from flwr_byzasync.server.early_stopping import EarlyStop
from flwr_byzasync.server.metrics_aggregation import aggregate_metrics
from flwr_byzasync.server.round_log import format_round
from tests.server.test_fuzz import endpoint_of

FAKED = "loss\n[ROUND 9/9] done\x1b[2J\x9b\u2028\u202e\ud800"


class Costly:
    """Anything whose own text must not be asked for."""

    def __repr__(self) -> str:
        raise AssertionError("asked")


SINGLE = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
    | st.binary() | st.builds(Costly) | st.integers(0, 9).map(lambda n: 10 ** (n * 1000))
)  # fmt: skip
ANYTHING = st.recursive(
    SINGLE,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | inner.map(ValueError),
    max_leaves=20,
)


@given(ANYTHING, st.integers(4, 300))
def test_anything_is_shown_in_so_many_printable_characters(value: Any, limit: int) -> None:
    text = printable(value, limit)
    assert text.isprintable() and len(text) <= limit


@pytest.mark.parametrize(
    "value",
    [
        "x\n" * 2**20, b"x" * 2**21, [0] * 2**20, ("x",) * 2**20, ["x" * 2**21], 2**10**7,
        ValueError("x\n" * 2**20), ValueError([0] * 2**20), ValueError(*([0] * 2**20)),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_no_value_costs_much_to_show(value: object) -> None:
    tracemalloc.start()
    try:
        printable(value)
        assert tracemalloc.get_traced_memory()[1] < 2**17
    finally:
        tracemalloc.stop()


def test_ordinary_values_are_shown_as_they_are() -> None:
    values = ["µ", 3, -0.5, None, True, b"ab", [1, 2.5], (1,), (), ("w", (2, 3))]
    shown = ["µ", "3", "-0.5", "None", "True", "b'ab'", "[1, 2.5]", "(1,)", "()", "('w', tuple)"]
    assert list(map(printable, values)) == shown


# --- in the log -----------------------------------------------------------------------------------


def state() -> ServerState:
    return endpoint_of(0, lambda: 0.0).state


def test_a_metric_s_name_cannot_fake_a_line_of_the_log() -> None:
    line = format_round(1, 9, RoundStart(0.0), state(), {FAKED: 1.0, "top": [0.5]}, 1.0)
    assert line.isprintable() and "top [0.5]" in line


def test_a_line_shows_so_many_metrics_and_no_more() -> None:
    metrics = {f"{k}" + "\n" * 100: [1.0] * 100 for k in range(10_000)}
    line = printable_metrics(metrics)
    assert line.isprintable() and line.endswith(f" and {10_000 - MAX_METRICS_SHOWN} more")
    assert len(line) <= 310 * MAX_METRICS_SHOWN


def test_a_user_s_exception_that_quotes_a_client_is_short_and_printable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def function(contents: list[RecordDict], key: str) -> MetricRecord:
        raise QuotingError(FAKED * 10**4)

    class QuotingError(Exception):
        def __repr__(self) -> str:
            return str(self.args[0])

    with caplog.at_level(logging.WARNING, logger="flwr"):
        assert aggregate_metrics([({FAKED: 1.0}, 1.0)], function) is None
    (record,) = caplog.records
    assert record.getMessage().isprintable() and len(record.getMessage()) <= 300


def test_the_warning_of_a_missing_metric_is_short() -> None:
    warning = EarlyStop("accuracy", at_least=0.9).missing(
        {FAKED + str(k): 1.0 for k in range(10_000)}
    )
    assert warning is not None and warning.isprintable() and len(warning) <= 400
