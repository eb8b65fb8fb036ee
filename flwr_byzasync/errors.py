"""Two kinds of fault: our caller's is an exception, a client's is a value.

`ConfigError` is raised where somebody configures us wrongly, before anything is sent.
`Reason` is recorded where a reply cannot be used; nothing a client sends may raise.
"""

import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import fields
from enum import Enum
from numbers import Integral, Real
from typing import Any


class ConfigError(ValueError):
    """A setting that cannot work, told in one sentence.

    Parameters
    ----------
    argument : str
        Name of the setting as the caller wrote it.
    value : object
        What was given.
    legal : str
        The legal range, as the end of "must be ...".
    fix : str
        The next move, as an imperative.

    Examples
    --------
    >>> str(ConfigError("lr", -1.0, "a number in (0, inf)", "pass for example lr=0.01"))
    'lr=-1.0 is not legal: it must be a number in (0, inf); pass for example lr=0.01.'
    """

    def __init__(self, argument: str, value: object, legal: str, fix: str) -> None:
        self.argument, self.value, self.legal, self.fix = argument, value, legal, fix
        shown = repr(value)
        if len(shown) > 200:
            shown = shown[:197] + "..."
        super().__init__(f"{argument}={shown} is not legal: it must be {legal}; {fix}.")

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[object, ...]]:
        # Exceptions cross process borders pickled; the default would pass the sentence alone.
        return type(self), (self.argument, self.value, self.legal, self.fix)


class Reason(Enum):
    """Why a reply was not used; the value is the sentence that logs and documents show."""

    CLIENT_ERROR = "the client app raised an exception or could not be loaded"
    CRASHED = "the process that ran the client app died"
    LOST = "the message or its reply is no longer available"
    NODE_GONE = "the node left before it replied"
    EXPIRED = "no reply came within the time limit of a message"
    UNSENT = "the query could not be handed to the network"
    NO_CONTENT = "the reply has no content"
    UNREADABLE = "an array could not be decoded"
    MISSING_RECORD = "a record that the reply must have is missing"
    EXTRA_RECORD = "the reply has an array record that nobody asked for"
    WRONG_NAMES = "the names of the arrays differ from the model's, or their order does"
    WRONG_DTYPE = "an array's dtype differs from the model's"
    WRONG_SHAPE = "an array's shape differs from the model's"
    NON_FINITE = "an array holds NaN or infinity"
    OVERFLOW = "the norm of the vector is beyond 1e150, where squares leave float64"
    WRONG_QUERY = "the reply answers another query than the one that was sent"
    WRONG_PAYLOAD = "the reply is of another kind than the strategy expects"
    UNSOLICITED = "the reply answers no message in the book: a duplicate, a replay or an invention"


NOT_ITS_DOING = frozenset(
    {Reason.CRASHED, Reason.LOST, Reason.NODE_GONE, Reason.EXPIRED, Reason.UNSENT}
)
"""Reasons that tell nothing about a client's honesty: a network, a dead process. They make a node
wait, but never shut it."""


def check_number(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    closed: str = "both",
    fix: str,
) -> float:
    """Return `value` as a float if it is a real number of the interval, else raise.

    Parameters
    ----------
    name, value
        The argument as the caller wrote it.
    low, high : float
        Ends of the legal interval. NaN and infinities are never legal.
    closed : {"both", "left", "right", "neither"}
        Which ends belong to it.
    fix : str
        The next move for the message.

    Raises
    ------
    ConfigError
        If `value` is no real number (bool counts as none) or lies outside.
    """
    left = "[" if closed in ("both", "left") and low != -math.inf else "("
    right = "]" if closed in ("both", "right") and high != math.inf else ")"
    legal = f"a number in {left}{low:g}, {high:g}{right}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(name, value, legal, fix)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    above = number >= low if left == "[" else number > low
    below = number <= high if right == "]" else number < high
    if not (math.isfinite(number) and above and below):
        raise ConfigError(name, value, legal, fix)
    return number


def check_integer(name: str, value: object, *, low: int, fix: str, high: int | None = None) -> int:
    """Return `value` as an int if it is a whole number of ``[low, high]``, else raise.

    Raises
    ------
    ConfigError
        If `value` is no integer (bool counts as none) or lies outside.
    """
    legal = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(name, value, legal, fix)
    number = int(value)
    if number < low or (high is not None and number > high):
        raise ConfigError(name, value, legal, fix)
    return number


def plain_numbers(settings: Any) -> None:
    """Make numbers of NumPy, and fractions, among a frozen dataclass's fields Python's own.

    What is legal as a number must be one wherever it is used: in arithmetic with tensors, in a
    checkpoint, and beside the same number when a run goes on.
    """
    for name in (field.name for field in fields(settings)):
        value = getattr(settings, name)
        if isinstance(value, Real) and type(value).__module__ != "builtins":
            with suppress(OverflowError):  # the check that follows refuses it
                number = int(value) if isinstance(value, Integral) else float(value)
                object.__setattr__(settings, name, number)


def check_choice(name: str, value: object, choices: Collection[str], *, fix: str) -> str:
    """Return `value` if it is one of `choices`, else raise `ConfigError` listing them.

    Raises
    ------
    ConfigError
        If `value` is no string or not among the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(name, value, "one of " + ", ".join(sorted(choices)), fix)
    return value


def check_byz_fraction(name: str, value: object) -> float:
    """Return λ as a float if it lies in [0, 1/2), and no nearer to 1/2 than 1e-9, else raise.

    Raises
    ------
    ConfigError
        If `value` is no number or lies outside: at half the weight nobody can tell sides apart,
        and nearer to it than rounding no rule can either.
    """
    fix = "pass the largest share of the weight that liars may hold, for example 0.4"
    number = check_number(name, value, low=0.0, high=0.5, closed="left", fix=fix)
    if number > 0.5 - 1e-9:
        raise ConfigError(name, value, "a number in [0, 0.5), 1e-9 or more below 0.5", fix)
    return number
