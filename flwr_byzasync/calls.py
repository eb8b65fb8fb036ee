"""Names with settings, as in ``rfa(iterations=5)``: how run-configs write rules and attacks."""

import ast
from collections.abc import Collection
from typing import NamedTuple

LONGEST = 1000
"""Characters: Python's parser is not made for endless nesting."""
WORDS = {"true": True, "false": False, "none": None}


class Call(NamedTuple):
    """A name, and what stands in brackets behind it.

    Parameters
    ----------
    name : str
        The name.
    positional : list of ast.expr
        What is written without a name, in order.
    settings : list of ast.keyword
        What is written as name=value.
    """

    name: str
    positional: list[ast.expr]
    settings: list[ast.keyword]

    def named(self, names: Collection[str]) -> dict[str, ast.expr] | None:
        """Return the settings by name, or None if one is not among `names` or comes twice."""
        found = {str(keyword.arg): keyword.value for keyword in self.settings}
        return found if len(found) == len(self.settings) and set(found) <= set(names) else None


def parse(text: object) -> ast.expr | None:
    """Return text as an expression, or None if it is none. Nothing in it is executed."""
    if not isinstance(text, str) or len(text) > LONGEST:
        return None
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def as_call(node: ast.expr | None) -> Call | None:
    """Return a name or the call of a name; None for all else.

    Examples
    --------
    >>> as_call(parse("gm"))
    Call(name='gm', positional=[], settings=[])
    >>> as_call(parse("3 * gm")) is None
    True
    """
    if isinstance(node, ast.Name):
        return Call(node.id, [], [])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return Call(node.func.id, node.args, node.keywords)
    return None


def constant(node: ast.expr) -> object:
    """Return the value of a literal, or of one of the words true, false and none.

    Raises
    ------
    ValueError
        If it is something else.

    Examples
    --------
    >>> constant(parse("-1e-6")), constant(parse("true"))
    (-1e-06, True)
    """
    if isinstance(node, ast.Name) and node.id in WORDS:
        return WORDS[node.id]
    try:
        value: object = ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError("no literal") from None
    return value
