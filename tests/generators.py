"""The rules that tests run over, and what tests of single rules draw."""

from dataclasses import fields
from functools import cache

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from flwr_byzasync import ConfigError
from flwr_byzasync.aggregators import Aggregator, build, discover
from flwr_byzasync.testing import Weighted, weighted_rows

MEDIANS = ("cwmed", "gm")
UNWEIGHTED = ("cwmed-unweighted", "ctma(mean)-unweighted")
NESTED = ("ctma(ctma(cwmed))", "nnm(ctma(gm))")
LEGAL = 0.2
"""A Byzantine share that every rule takes."""
float_rows = "floats"


def weighted(kind: str = "integers") -> st.SearchStrategy[Weighted]:
    """Weighted rows of one kind."""
    return weighted_rows(kind)


def search(part: int = 1) -> settings:
    """How much the profile lets a test search, or a part of it."""
    return settings(
        max_examples=max(5, settings().max_examples // part),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


@cache
def rule_names() -> tuple[str, ...]:
    """Rules as `build` writes them: every one alone, and some of the compositions.

    Every rule with a base is put over both medians, CTMA over every rule without one; two are
    nested, two do not see weights.
    """
    takes_base = {
        name: "base" in {field.name for field in fields(rule)}  # type: ignore[arg-type]
        for name, rule in discover().items()
    }
    plain = [name for name, base in takes_base.items() if not base]
    over = [f"{name}({base})" for name, meta in takes_base.items() if meta for base in MEDIANS]
    trimmed = [f"ctma({name})" for name in plain if name not in MEDIANS]
    nested = [name for name in NESTED if name.split("(")[0] in takes_base]
    return (*plain, *over, *trimmed, *nested, *UNWEIGHTED)


def every_rule(lam: float = LEGAL) -> dict[str, Aggregator]:
    """Return every rule by name, built for the Byzantine share `lam` if that is legal for it."""
    rules = {}
    for name in rule_names():
        try:
            rules[name] = build(name, byz_fraction=lam)
        except ConfigError:  # at 0.2 there is none: a test says so
            continue
    return rules
