"""Every error names argument, value, legal range and fix, in one sentence."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync import ConfigError, Reason
from flwr_byzasync._checks import check_byz_fraction, check_choice, check_integer, check_number


def test_a_config_error_is_one_sentence() -> None:
    text = str(ConfigError("lr", -1, "positive", "raise it"))
    assert text == "lr=-1 is not legal: it must be positive; raise it."


def test_a_long_value_does_not_drown_the_sentence() -> None:
    assert len(str(ConfigError("lr", "x" * 10_000, "positive", "raise it"))) < 300


def test_a_config_error_survives_pickling() -> None:
    error = ConfigError("lr", -1, "positive", "raise it")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@given(st.floats(0, 0.5 - 1e-9))
def test_every_share_below_one_half_is_legal(share: float) -> None:
    assert check_byz_fraction("byz_fraction", share) == share


@given(st.floats(0.5 - 1e-9, 0.5, exclude_min=True, exclude_max=True))
def test_a_share_that_is_one_half_but_for_rounding_is_refused(share: float) -> None:
    """Rules whose weights for it are 0 / 0 would return NaN, or break their constant."""
    with pytest.raises(ConfigError, match=r"a number in \[0, 0\.5\), 1e-9 or more below"):
        check_byz_fraction("byz_fraction", share)


@pytest.mark.parametrize("share", [0.5, 1.0, -0.01, float("nan"), float("inf"), "0.4", None, True])
def test_every_other_share_is_refused(share: object) -> None:
    with pytest.raises(ConfigError, match=r"a number in \[0, 0\.5\)"):
        check_byz_fraction("byz_fraction", share)


@pytest.mark.parametrize(
    ("closed", "value", "legal"),
    [
        ("both", 0, True), ("both", 1, True), ("left", 0, True), ("left", 1, False),
        ("right", 0, False), ("right", 1, True), ("neither", 0, False), ("neither", 1, False),
        ("neither", 0.5, True),
    ],
)  # fmt: skip
def test_ends_of_an_interval_belong_to_it_as_stated(closed: str, value: float, legal: bool) -> None:
    if legal:
        assert check_number("x", value, low=0, high=1, closed=closed, fix="fix") == value
    else:
        with pytest.raises(ConfigError):
            check_number("x", value, low=0, high=1, closed=closed, fix="fix")


@pytest.mark.parametrize("value", [0, 1.0, "1", None, True, 11])
def test_what_is_no_integer_of_the_range_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"an integer in \[1, 10\]"):
        check_integer("k", value, low=1, high=10, fix="fix")


def test_a_choice_is_refused_with_the_list_of_choices() -> None:
    with pytest.raises(ConfigError, match="one of a, b; fix"):
        check_choice("k", "c", ["b", "a"], fix="fix")


def test_every_reason_is_a_sentence_of_its_own() -> None:
    assert len({reason.value for reason in Reason}) == len(Reason)
    assert all(len(reason.value.split()) >= 5 for reason in Reason)
