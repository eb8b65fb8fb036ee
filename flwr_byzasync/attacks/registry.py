"""Attacks by name: parsing what run-configs write."""

import ast
from collections.abc import Mapping
from dataclasses import fields
from functools import cache

from flwr_byzasync._registry import WORDS, as_call, declared, literal, parse_spec, with_aliases
from flwr_byzasync.attacks.attack import LabelAttack, VectorAttack
from flwr_byzasync.errors import ConfigError

PACKAGE = "flwr_byzasync.attacks"
FIX = "write for example 'little' or 'little(z=1.5)'"


@cache
def discover() -> Mapping[str, type[VectorAttack] | type[LabelAttack]]:
    """Return every attack of this package by name, from the ``INFO`` declarations in its modules.

    Examples
    --------
    >>> discover()["sign_flip"].__name__
    'SignFlip'
    """
    return declared(PACKAGE, "INFO")


@cache
def by_any_name() -> Mapping[str, type[VectorAttack] | type[LabelAttack]]:
    """Return every attack of this package by its name and by each alias."""
    return with_aliases(discover(), "INFO")


def build(text: str) -> VectorAttack | LabelAttack:
    """Build an attack from its name or alias, with parameters written as keywords of a call.

    Parameters
    ----------
    text : str
        For example ``"little"``, ``"little(z=1.5)"`` or ``"flood(base=empire(epsilon=0.5))"``.
        Words need no quotes: ``"little(z=optimised)"``. Omitted parameters have their defaults.

    Returns
    -------
    VectorAttack or LabelAttack
        The attack.

    Raises
    ------
    ConfigError
        If the text does not parse, an attack or a parameter is unknown, or a value is not
        legal. Nothing in the text is executed.

    Examples
    --------
    >>> build("sleeper(honest_for=5, base=empire)")
    Sleeper(honest_for=5, hostile_for=20, base=Empire(epsilon=0.1, memory=10))
    """
    return _attack(parse_spec(text), text)


def _legal() -> str:
    return f"one of {', '.join(discover())}, alone or with parameters as in little(z=1.5)"


def _attack(node: ast.expr | None, text: str) -> VectorAttack | LabelAttack:
    call = as_call(node)
    if call is None or call.name not in by_any_name():
        raise ConfigError("attack", text, _legal(), FIX)
    attack = by_any_name()[call.name]
    names = [field.name for field in fields(attack)]  # type: ignore[arg-type]
    arguments = call.named(names)
    if call.positional or arguments is None:
        takes = f"with parameters among {', '.join(names)}" if names else "without parameters"
        raise ConfigError("attack", text, f"{call.name} {takes}, each once, as name=value", FIX)
    return attack(**{name: _value(name, value, text) for name, value in arguments.items()})


def _value(name: str, node: ast.expr, text: str) -> object:
    if name == "base" and isinstance(node, ast.Name | ast.Call):
        return _attack(node, text)
    if isinstance(node, ast.Name) and node.id not in WORDS:
        return node.id
    try:
        return literal(node)
    except ValueError:
        legal = f"written with a number or a word for {name}"
        raise ConfigError("attack", text, legal, FIX) from None
