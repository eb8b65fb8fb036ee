"""Names of rules: what run-configs and commands write, and how it becomes a rule."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from typing import Any, ClassVar

from torch import Tensor

from flwr_byzasync.aggregators.incremental import Change, Incremental, TableView, incremental_of
from flwr_byzasync.aggregators.rule import (
    Aggregator,
    Law,
    Rule,
    WeightedRule,
    laws_of,
    precise,
)
from flwr_byzasync.discovery import declared
from flwr_byzasync.errors import ConfigError, check_byz_fraction

PACKAGE = "flwr_byzasync.aggregators"


@cache
def discover() -> Mapping[str, type[WeightedRule]]:
    """Return every rule of this package by name, read off the files' ``RULE`` declarations.

    Returns
    -------
    mapping of str to class
        Read-only, sorted by name.

    Examples
    --------
    >>> discover()["gm"].__name__
    'GeometricMedian'
    """
    # `Unweighted` lives in this module: it is written as a suffix, not as a name.
    return declared(PACKAGE, "RULE", without=("registry",))


def build(text: str, byz_fraction: float | None = None) -> Aggregator:
    """Make a rule from its name, compositions written as calls.

    Parameters
    ----------
    text : str
        For example ``"cwmed"`` or ``"ctma(gm)"``. ``NAME-unweighted`` gives every node that
        has replied the weight 1.
    byz_fraction : float, optional
        λ in [0, 1/2), handed to every class that has the field; such a class needs it.

    Returns
    -------
    Aggregator
        The rule.

    Raises
    ------
    ConfigError
        If the text does not parse, a name is unknown, a rule needs a base and has none (or the
        other way round), or `byz_fraction` is out of range.

    Examples
    --------
    >>> build("ctma(gm)", byz_fraction=0.4)
    CTMA(base=GeometricMedian(), byz_fraction=0.4)
    """
    if byz_fraction is not None:
        check_byz_fraction("byz_fraction", byz_fraction)
    compact = re.sub(r"\s", "", text) if isinstance(text, str) else ""
    match = re.fullmatch(r"([a-z_0-9]+)(?:\((.+)\))?(-unweighted)?", compact)
    rules = discover()
    example = "write for example 'cwmed' or 'ctma(gm)'"
    if match is None or match[1] not in rules:
        legal = f"one of {', '.join(rules)}, or a composition of them such as ctma(gm)"
        raise ConfigError("aggregator", text, legal, example)
    rule = rules[match[1]]
    settings = {field.name: field for field in fields(rule)}  # type: ignore[arg-type]
    given: dict[str, object] = {}
    if ("base" in settings) != (match[2] is not None):
        needs = "with a base in brackets" if "base" in settings else "without brackets"
        raise ConfigError("aggregator", text, f"{match[1]} {needs}", example)
    if match[2] is not None:
        given["base"] = build(match[2], byz_fraction)
    if "byz_fraction" in settings:
        given["byz_fraction"] = byz_fraction
    missing = [n for n, f in settings.items() if n not in given and f.default is MISSING]
    if missing:
        fix = f"build it in Python with {', '.join(missing)}"
        raise ConfigError("aggregator", text, "a rule that needs no other settings", fix)
    made = rule(**given)
    return Unweighted(made) if match[3] else made


@dataclass(frozen=True)
class Unweighted(WeightedRule):
    """A rule that sees the weight 1 for every row of positive weight: the paper's comparison.

    Its bound would hold for counts of nodes, not for shares of the weight, so none is declared.
    """

    base: Aggregator

    RULE: ClassVar[Rule] = Rule(
        name="unweighted",
        laws=frozenset(Law) - {Law.COPIES},
        bound=None,
        sources=("Dahan and Levy 2024, section 5: what weights are compared with",),
    )

    @property
    def laws(self) -> frozenset[Law]:
        """The base's laws without copies."""
        return self.RULE.laws & laws_of(self.base)

    def bound(self, lam: float) -> float | None:  # noqa: ARG002 - same answer for every share
        """None: a liar's share of the nodes is not its share of the weight."""
        return None

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the base's result with all positive weights set to 1."""
        return precise(self.base, rows, _ones(weights))

    def incremental(self) -> "IncrementalUnweighted | None":
        """How it is kept up to date, where its base is."""
        base = incremental_of(self.base)
        return None if base is None else IncrementalUnweighted(base)


@dataclass(frozen=True)
class IncrementalUnweighted:
    """A rule kept up to date that is shown a table of weights 1; its state is the base's."""

    base: Incremental[Any]

    def start(self, view: TableView) -> object:
        """Return the base's state."""
        return self.base.start(_with_ones(view))

    def update(self, state: object, change: Change, view: TableView) -> object | None:
        """Return the base's state after a change."""
        before, after = _ones(change.old_weights), _ones(change.new_weights)
        ones = replace(change, old_weights=before, new_weights=after)
        return self.base.update(state, ones, _with_ones(view))

    def direction(self, state: object, view: TableView) -> Tensor:
        """Return the base's direction."""
        return self.base.direction(state, _with_ones(view))


def _ones(weights: Tensor) -> Tensor:
    return (weights > 0).to(weights.dtype)


def _with_ones(view: TableView) -> TableView:
    return replace(view, weights=_ones(view.weights))
