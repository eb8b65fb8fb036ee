"""Values from outside, such as a client's, as short text on one line: safe in logs, cheap to make.

Slices come before conversions, so the cost does not grow with the value. What a terminal would
obey, or a log would show as a line of its own, is escaped.
"""

from collections.abc import Mapping
from itertools import islice

MAX_ITEMS = 10
"""Items of a list that are shown."""
MAX_METRICS_SHOWN = 100
"""Metrics in a line of the log."""
MAX_BITS = 256
"""Integers beyond are shown by their size: digits cost the square of it, and raise beyond 4,300."""


def printable(value: object, limit: int = 200) -> str:
    r"""Return a value as at most `limit` printable characters.

    Parameters
    ----------
    value : object
        Text, a number, bytes, a list or tuple of these, or an exception: its type and arguments.
        Anything else is shown by its type alone, since its own ``str`` may cost or raise anything.
    limit : int
        Characters, >= 4.

    Examples
    --------
    >>> print(printable("loss\n\x1b[2J"))
    loss\n\x1b[2J
    >>> printable("x" * 1000, 10), printable([1, "a", [2]]), printable(2**1000)
    ('xxxxxxx...', "[1, 'a', list]", 'an integer of 1001 bits')
    >>> printable(KeyError("loss"))
    "KeyError: 'loss'"
    """
    if isinstance(value, BaseException):
        items = ", ".join(_item(each, limit) for each in value.args[:MAX_ITEMS])
        text = f"{type(value).__name__}: {items}" if items else type(value).__name__
    elif isinstance(value, list | tuple):
        items = ", ".join(_item(each, limit) for each in islice(value, MAX_ITEMS))
        items += ", ..." if len(value) > MAX_ITEMS else "," * (len(value) == 1)
        text = f"[{items.rstrip(',')}]" if isinstance(value, list) else f"({items})"
    else:
        text = _single(value, limit)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def printable_metrics(metrics: Mapping[str, object]) -> str:
    r"""Return metrics as one line of names and numbers; names may be a client's.

    Examples
    --------
    >>> print(printable_metrics({"accuracy": 0.91234, "a\n": 3, "top": [1.0, 2.5]}))
    accuracy 0.9123, a\n 3, top [1.0, 2.5]
    """
    shown = [
        f"{printable(k, 100)} {_number(v)}" for k, v in islice(metrics.items(), MAX_METRICS_SHOWN)
    ]
    left = len(metrics) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left > 0 else "")


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(value)


def _item(value: object, limit: int) -> str:
    """Return an item of a list, without the items inside it."""
    if isinstance(value, str):
        return f"'{_single(value, limit)}'"
    return _single(value, limit)


def _single(value: object, limit: int) -> str:
    if isinstance(value, str):
        return "".join(map(_escaped, value[: limit + 1]))
    if isinstance(value, bytes):
        return repr(value[: limit + 1])
    if isinstance(value, int) and not isinstance(value, bool):
        bits = value.bit_length()
        return f"{int(value)}" if bits <= MAX_BITS else f"an integer of {bits} bits"
    if value is None or isinstance(value, bool | float):
        return repr(value)
    return type(value).__name__


def _escaped(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
