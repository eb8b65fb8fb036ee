"""Discovery of the classes that a package's modules declare, and parsing of their specs."""

import ast
from collections.abc import Collection, Mapping
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any, NamedTuple

MAX_LENGTH = 1000
"""Longest spec in characters: Python's parser fails on deep nesting."""
WORDS = {"true": True, "false": False, "none": None}


def declared(package: str, attribute: str, without: tuple[str, ...] = ()) -> Mapping[str, type]:
    """Return the classes that a package's modules declare, by name.

    Parameters
    ----------
    package : str
        Import path of the package.
    attribute : str
        Class attribute that holds the declaration; its ``name`` is the key. For its optional
        ``aliases`` see `with_aliases`.
    without : tuple of str
        Modules to skip.

    Returns
    -------
    mapping of str to class
        Read-only, sorted by name.

    Raises
    ------
    RuntimeError
        If two classes declare the same name or alias.
    """
    found: dict[str, type] = {}
    taken: dict[str, type] = {}
    for module in iter_modules(import_module(package).__path__):
        if module.name in without:
            continue
        path = f"{package}.{module.name}"
        for member in vars(import_module(path)).values():
            own = isinstance(member, type) and member.__module__ == path
            info: Any = member.__dict__.get(attribute) if own else None
            if not hasattr(info, "name"):
                continue
            for name in _names(info):
                if name in taken:
                    both = f"{taken[name]} and {member}"
                    raise RuntimeError(f"two classes are named {name!r}: {both}")
                taken[name] = member
            found[info.name] = member
    return MappingProxyType(dict(sorted(found.items())))


def with_aliases(found: Mapping[str, type], attribute: str) -> Mapping[str, type]:
    """Return the same classes by their names and aliases."""
    return MappingProxyType(
        {name: each for each in found.values() for name in _names(getattr(each, attribute))}
    )


def _names(info: Any) -> tuple[str, ...]:
    return info.name, *getattr(info, "aliases", ())


class Call(NamedTuple):
    """A name and its arguments.

    Parameters
    ----------
    name : str
        The name.
    positional : list of ast.expr
        Positional arguments, in order.
    settings : list of ast.keyword
        Keyword arguments.
    """

    name: str
    positional: list[ast.expr]
    settings: list[ast.keyword]

    def named(self, names: Collection[str]) -> dict[str, ast.expr] | None:
        """Return the settings by name, or None if one is unknown or repeated."""
        found = {str(keyword.arg): keyword.value for keyword in self.settings}
        return found if len(found) == len(self.settings) and set(found) <= set(names) else None


def parse_spec(text: object) -> ast.expr | None:
    """Parse a spec such as ``ctma(gm)``; None if it is no expression. Nothing is executed."""
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        return None
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def as_call(node: ast.expr | None) -> Call | None:
    """Return a name or the call of a name as a `Call`; None for anything else.

    Examples
    --------
    >>> as_call(parse_spec("gm"))
    Call(name='gm', positional=[], settings=[])
    >>> as_call(parse_spec("3 * gm")) is None
    True
    """
    if isinstance(node, ast.Name):
        return Call(node.id, [], [])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return Call(node.func.id, node.args, node.keywords)
    return None


def literal(node: ast.expr) -> object:
    """Return the value of a literal, or of one of the words true, false and none.

    Raises
    ------
    ValueError
        If it is anything else.

    Examples
    --------
    >>> literal(parse_spec("-1e-6")), literal(parse_spec("true"))
    (-1e-06, True)
    """
    if isinstance(node, ast.Name) and node.id in WORDS:
        return WORDS[node.id]
    try:
        value: object = ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError("not a literal") from None
    return value
