"""Values <-> JSON and named tensors, by their declared types.

Dataclasses are encoded field by field as declared: a new field is saved without further code,
and a type without a codec fails the first test that meets it.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from flwr_byzasync._printable import printable
from flwr_byzasync.core.clock_time import ClockTime


class MisfitError(ValueError):
    """A value is not of the type that is declared for it."""


def pack(value: Any, hint: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON can hold it; its tensors are put into `tensors`.

    Parameters
    ----------
    value : object
        Of the type `hint`: bool, int, float, str, None, Tensor, an Enum, a dataclass of these,
        or a union, tuple, list, frozenset or Mapping of these; annotated or not.
    hint : type
        As declared.
    tensors : dict
        Filled: one entry for each tensor, however often it occurs.

    Raises
    ------
    MisfitError
        If `value` is not of that type.
    TypeError
        If the type has no codec.

    Examples
    --------
    >>> pack({3: (0.5, 1.0)}, Mapping[int, tuple[float, ...]], {})
    [[3, [0.5, 1.0]]]
    >>> unpack([[3, [0.5, 1.0]]], Mapping[int, tuple[float, ...]], {})
    {3: (0.5, 1.0)}
    """
    hint = _bare(hint)
    if hint is Tensor:
        return _store(_checked(value, Tensor), tensors)
    if _is(hint, Enum):
        return _checked(value, hint).name
    if is_dataclass(hint):
        return {
            name: pack(getattr(_checked(value, hint), name), declared, tensors)
            for name, declared in types_of(hint).items()
        }
    origin, args = get_origin(hint), get_args(hint)
    if origin is Mapping:
        pairs = _checked(value, Mapping).items()
        return [[pack(k, args[0], tensors), pack(v, args[1], tensors)] for k, v in pairs]
    if origin is frozenset:
        # In an order of its own: that of a set may differ from process to process.
        return [pack(item, args[0], tensors) for item in sorted(_checked(value, frozenset))]
    if origin in (tuple, list):
        return [pack(item, args[0], tensors) for item in _checked(value, origin)]
    return _plain(value, hint, lambda arm: pack(value, arm, tensors))


def unpack(plain: Any, hint: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that `pack` encoded.

    Parameters
    ----------
    plain : object
        As JSON gives it.
    hint : type
        As declared.
    tensors : mapping
        By name.

    Raises
    ------
    MisfitError
        If it is no encoding of that type: for example, a field is missing or unknown.
    TypeError
        If the type has no codec.
    """
    hint = _bare(hint)
    if hint is Tensor:
        if _checked(plain, str) not in tensors:
            raise MisfitError(f"the tensor {printable(plain)} is missing")
        return tensors[plain]
    if _is(hint, Enum):
        if _checked(plain, str) not in hint.__members__:
            raise MisfitError(f"{hint.__name__} has no {printable(plain)}")
        return hint[plain]
    if is_dataclass(hint):
        declared, given = types_of(hint), _checked(plain, dict)
        if declared.keys() != given.keys():
            odd = printable(", ".join(sorted(declared.keys() ^ given.keys())))
            raise MisfitError(f"the fields of {getattr(hint, '__name__', hint)} differ by {odd}")
        return hint(**{k: unpack(given[k], declared[k], tensors) for k in declared})  # type: ignore[operator]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Mapping:
        pairs = [_pair(pair) for pair in _checked(plain, list)]
        unpacked = {unpack(k, args[0], tensors): unpack(v, args[1], tensors) for k, v in pairs}
        if len(unpacked) < len(pairs):
            raise MisfitError("a key occurs twice")
        return unpacked
    if origin in (tuple, list, frozenset):
        items = [unpack(item, args[0], tensors) for item in _checked(plain, list)]
        if origin is frozenset and items != sorted(set(items)):
            raise MisfitError("a set is out of order")
        return origin(items)
    return _plain(plain, hint, lambda arm: unpack(plain, arm, tensors))


def shift_clock(value: Any, hint: Any, seconds: float) -> Any:
    """Return a value with every `ClockTime` in it shifted.

    Parameters
    ----------
    value, hint
        As for `pack`. Clock times are found in fields of dataclasses and values of mappings.
    seconds : float
        Added to each.

    Examples
    --------
    >>> shift_clock({"a": 1.0}, Mapping[str, ClockTime], 2.5)
    {'a': 3.5}
    """
    if hint == ClockTime:
        return value + seconds
    hint = _bare(hint)
    if is_dataclass(hint):
        timed = {k: h for k, h in types_of(hint).items() if _holds_clock_time(h)}
        shifted = {k: shift_clock(getattr(value, k), h, seconds) for k, h in timed.items()}
        return replace(value, **shifted) if shifted else value
    if get_origin(hint) is Mapping and _holds_clock_time(hint):
        return {k: shift_clock(item, get_args(hint)[1], seconds) for k, item in value.items()}
    if _holds_clock_time(hint):
        raise TypeError(f"flwr_byzasync.checkpoints.codec shifts no clock times in {hint}")
    return value


def types_of(cls: Any) -> dict[str, Any]:
    """Return the declared type of every field of a dataclass, annotations included."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def _plain(value: Any, hint: Any, through: Callable[[Any], Any]) -> Any:
    """Return a number, string or None as it is; for a union, the result of the first arm to fit."""
    if get_origin(hint) in (Union, UnionType):
        for arm in get_args(hint):
            try:
                return through(arm)
            except MisfitError:
                continue
        raise MisfitError(f"{printable(value)} is not a {hint}")
    if hint is float and type(value) is int and abs(value) < 2**1023:  # a metric that is a count
        return value
    if hint in (bool, int, float, str, NoneType):
        if hint is not bool and isinstance(value, bool):
            raise MisfitError(f"{printable(value)} is not a {hint.__name__}")
        return _checked(value, hint)
    raise TypeError(f"flwr_byzasync.checkpoints.codec has no codec for {hint}: add one there")


def _store(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    for name, known in tensors.items():
        if known is tensor:
            return name
    name = f"t{len(tensors)}"
    tensors[name] = tensor
    return name


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise MisfitError(f"{printable(value)} is not a {kind.__name__}")
    return value


def _pair(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise MisfitError(f"{printable(value)} is not a pair")
    return value


def _bare(hint: Any) -> Any:
    """Return a type without its annotations."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _holds_clock_time(hint: Any) -> bool:
    """Whether a type is, or contains, a `ClockTime`."""
    if hint == ClockTime:
        return True
    hint = _bare(hint)
    inner = types_of(hint).values() if is_dataclass(hint) else get_args(hint)
    return any(_holds_clock_time(each) for each in inner)


def _is(hint: Any, kind: type) -> bool:
    return isinstance(hint, type) and issubclass(hint, kind)
