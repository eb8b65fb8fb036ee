"""Rules by name: parsing what run-configs and commands write."""

import ast
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any

from flwr_byzasync._checks import check_byz_fraction
from flwr_byzasync._registry import as_call, declared, literal, parse_spec
from flwr_byzasync.aggregators.rule import (
    Aggregator,
    WeightedRule,
)
from flwr_byzasync.aggregators.unweighted import Unweighted
from flwr_byzasync.errors import ConfigError

PACKAGE = "flwr_byzasync.aggregators"
FIX = "write for example 'cwmed', 'ctma(gm)' or 'rfa(iterations=5)'"


@cache
def discover() -> Mapping[str, type[WeightedRule]]:
    """Return every rule of this package by name, from the ``INFO`` declarations in its modules.

    Returns
    -------
    mapping of str to class
        Read-only, sorted by name.

    Examples
    --------
    >>> discover()["gm"].__name__
    'GeometricMedian'
    """
    # `Unweighted` is written as a suffix, not as a name.
    return declared(PACKAGE, "INFO", without=("unweighted",))


def build(text: str, byz_fraction: float | None = None) -> Aggregator:
    """Build a rule from its name, with compositions and settings written as calls.

    Parameters
    ----------
    text : str
        For example ``"cwmed"``, ``"rfa(iterations=5)"`` or ``"ctma(bucketing(gm, seed=3))"``:
        a base comes first and without a name, settings as name=value, a value being a number,
        true, false or none. ``NAME-unweighted`` sets the weight of every node that replied to 1.
    byz_fraction : float, optional
        λ in [0, 1/2), passed to every class that has the field, unless the text sets it; such a
        class requires it.

    Returns
    -------
    Aggregator
        The rule.

    Raises
    ------
    ConfigError
        If the text does not parse, a name or a setting is unknown, a rule lacks a base or a
        required setting, or a value is not legal. Nothing in the text is executed.

    Examples
    --------
    >>> build("ctma(gm)", byz_fraction=0.4)
    CTMA(base=GeometricMedian(), byz_fraction=0.4)
    >>> build("ctma(rfa(iterations=5), byz_fraction=0.1)", byz_fraction=0.4)
    CTMA(base=RFA(iterations=5, nu=1e-06), byz_fraction=0.1)
    """
    if byz_fraction is not None:
        check_byz_fraction("byz_fraction", byz_fraction)
    return _rule(parse_spec(text), text, byz_fraction)


def _rule(node: ast.expr | None, text: str, byz_fraction: float | None) -> Aggregator:
    here = text if node is None else ast.get_source_segment(text.strip(), node)
    inner = _before_suffix(node)
    if inner is not None:
        return Unweighted(_rule(inner, text, byz_fraction))
    call = as_call(node)
    if call is None or call.name not in discover():
        legal = f"one of {', '.join(discover())}, alone or with brackets"
        raise ConfigError("aggregator", here, legal, FIX)
    rule = discover()[call.name]
    settings = {f.name: f for f in fields(rule) if f.init}  # type: ignore[arg-type]
    base = settings.pop("base", None)
    written = call.named(settings)
    bases = len(call.positional)
    if written is None or bases > (base is not None) or bases < (base is not None and _bare(base)):
        raise ConfigError("aggregator", here, _legal(call.name, settings, base), FIX)
    arguments: dict[str, Any] = {}
    if byz_fraction is not None and "byz_fraction" in settings:
        arguments["byz_fraction"] = byz_fraction
    for name, value in written.items():
        arguments[name] = _number(call.name, name, value, text)
    if call.positional:
        arguments["base"] = _rule(call.positional[0], text, byz_fraction)
    missing = [name for name, field in settings.items() if _bare(field) and name not in arguments]
    if missing:
        fix = f"write it as name=value, for example {missing[0]}=0.3"
        legal = f"{call.name} with {', '.join(missing)}"
        raise ConfigError("aggregator", here, legal, fix)
    return rule(**arguments)


def _before_suffix(node: ast.expr | None) -> ast.Name | ast.Call | None:
    """Return X of ``X-unweighted``."""
    match node:
        case ast.BinOp(ast.Name() | ast.Call() as left, ast.Sub(), ast.Name("unweighted")):
            return left
    return None


def _bare(field: Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def _legal(name: str, settings: Collection[str], base: Field[Any] | None) -> str:
    """Describe how a rule is written."""
    named = f"settings among {', '.join(settings)}, each once, as name=value"
    match base is not None, bool(settings):
        case False, False:
            return f"{name} without brackets"
        case False, True:
            return f"{name}, alone or with {named}"
        case True, False:
            return f"{name} with a base in brackets"
    return f"{name} with a base in brackets, followed by {named}"


def _number(rule: str, name: str, node: ast.expr, text: str) -> object:
    with suppress(ValueError):
        value = literal(node)
        if value is None or isinstance(value, int | float):
            return value
    legal = f"{rule} with a number, true, false or none for {name}"
    raise ConfigError("aggregator", ast.get_source_segment(text.strip(), node), legal, FIX)
