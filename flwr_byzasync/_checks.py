"""Checks of settings: each error names the argument, its value, the legal range and the fix."""

import math
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

import torch

from flwr_byzasync.errors import ConfigError


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
        The argument as the caller passed it.
    low, high : float
        Ends of the legal interval. NaN and infinities are never legal.
    closed : {"both", "left", "right", "neither"}
        Which ends are included.
    fix : str
        The end of the message: what to do instead.

    Raises
    ------
    ConfigError
        If `value` is not a real number (bool is not accepted) or lies outside.
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
        If `value` is not an integer (bool is not accepted) or lies outside.
    """
    legal = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(name, value, legal, fix)
    number = int(value)
    if number < low or (high is not None and number > high):
        raise ConfigError(name, value, legal, fix)
    return number


def coerce_numbers(settings: Any) -> None:
    """Convert NumPy scalars and fractions in a frozen dataclass to built-in numbers.

    So that arithmetic with tensors, checkpoints and the comparison on resume agree.
    """
    for name in (field.name for field in fields(settings)):
        value = getattr(settings, name)
        if isinstance(value, Real) and type(value).__module__ != "builtins":
            with suppress(OverflowError):  # refused by the check that follows
                number = int(value) if isinstance(value, Integral) else float(value)
                object.__setattr__(settings, name, number)


def check_choice(name: str, value: object, choices: Collection[str], *, fix: str) -> str:
    """Return `value` if it is one of `choices`, else raise `ConfigError` listing them.

    Raises
    ------
    ConfigError
        If `value` is not a string or not among the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(name, value, "one of " + ", ".join(sorted(choices)), fix)
    return value


def check_byz_fraction(name: str, value: object) -> float:
    """Return λ as a float if it lies in [0, 1/2), and no nearer to 1/2 than 1e-9, else raise.

    Raises
    ------
    ConfigError
        If `value` is not a number or lies outside. At half of the weight the two sides cannot be
        told apart, and within rounding of it no rule can decide either.
    """
    fix = "pass the largest share of the weight that Byzantine nodes may hold, for example 0.4"
    number = check_number(name, value, low=0.0, high=0.5, closed="left", fix=fix)
    if number > 0.5 - 1e-9:
        raise ConfigError(name, value, "a number in [0, 0.5), 1e-9 or more below 0.5", fix)
    return number


def check_count(name: str, count: int | None) -> int | None:
    """Return `count` if it is a positive integer or None, else raise."""
    fix = "pass a positive number, or None"
    return None if count is None else check_integer(name, count, low=1, fix=fix)


def usable_device(device: str | torch.device) -> torch.device:
    """Return the device if rules can run on it: the CPU, or an available CUDA device."""
    # Rules compute in float64, which other accelerators do not support.
    legal = "'cpu' or a CUDA device of this machine"
    fix = "pass 'cpu', or 'cuda' where torch.cuda.is_available()"
    try:
        usable = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        raise ConfigError("device", device, legal, fix) from None
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    on_card = usable.type == "cuda" and (usable.index or 0) < cards
    if usable.type != "cpu" and not on_card:
        raise ConfigError("device", str(device), legal, fix)
    return usable


def check_call(name: str, call: object) -> None:
    """Raise unless `call` is callable or None."""
    if call is not None and not callable(call):
        raise ConfigError(name, call, "a function, or None", "leave it out")


def check_key(name: str, key: object, reserved: Iterable[str]) -> str:
    """Return a record's name if it is not reserved by another record."""
    others = tuple(reserved)
    if not isinstance(key, str) or not key or key in others:
        legal = f"a name other than {', '.join(repr(other) for other in others)}"
        raise ConfigError(name, key, legal, "leave it out or pass a name of its own")
    return key


def check_names(name: str, names: object) -> tuple[str, ...]:
    """Return names as a tuple; a single string is refused."""
    items: tuple[object, ...] | None = None
    with suppress(TypeError):  # not iterable, or only nominally, as a 0-d NumPy array
        items = None if isinstance(names, str) else tuple(names)  # type: ignore[arg-type]
    strings = None if items is None else tuple(each for each in items if isinstance(each, str))
    if strings is None or strings != items:
        fix = "pass for example buffer_names(model)"
        raise ConfigError(name, names if items is None else items, "a collection of names", fix)
    return strings
