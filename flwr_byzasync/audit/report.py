"""Audit reports: tables, text and figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from flwr_byzasync.aggregators.rule import Aggregator, bound_of, published_of
from flwr_byzasync.audit.case import RUIN, Case, plain

SLACK = 1e-6
"""Relative excess over a bound that counts as rounding."""
WIDTH = 60
"""Width of the text plot, in characters."""
Values = list[float | None]


@dataclass(frozen=True)
class AuditRow:
    """The worst case found for a rule at one λ.

    Parameters
    ----------
    rule : Aggregator
        The rule, built for this λ.
    lam : float
        λ.
    worst : Case
        The worst case found.
    """

    rule: Aggregator
    lam: float
    worst: Case

    @property
    def ours(self) -> float | None:
        """The constant that the rule states."""
        return bound_of(self.rule, self.lam)

    @property
    def published(self) -> float | None:
        """The literature's constant."""
        return published_of(self.rule, self.lam)

    @property
    def floor(self) -> float:
        """λ/(1 − 2λ), below which no rule's constant lies."""
        return self.lam / (1.0 - 2.0 * self.lam)

    @property
    def broken(self) -> bool:
        """Whether the found ratio is above the stated constant."""
        return self.ours is not None and self.worst.ratio > self.ours * (1.0 + SLACK) + 1e-9

    @property
    def unbounded(self) -> bool:
        """Whether the rule states no constant, and the ratio found exceeds 1e6."""
        return self.ours is None and self.worst.ratio > RUIN


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return "unbounded" if value > RUIN else f"{value:.4g}"


def table(rows: Sequence[AuditRow], *, markdown: bool) -> str:
    """Return one rule's table, one row per λ."""
    cells = [["λ", "published", "ours", "worst found", "share of ours", "floor λ/(1-2λ)"]]
    for row in rows:
        share = f"{row.worst.ratio / row.ours:.1%}" if row.ours else "-"
        numbers = [row.published, row.ours, row.worst.ratio, row.floor]
        published, ours, found, floor = map(_number, numbers)
        cells.append([f"{row.lam:g}", published, ours, found, share, floor])
    if markdown:
        return _markdown(cells)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [[c.rjust(w) for c, w in zip(entry, widths, strict=True)] for entry in cells]
    return "\n".join("  ".join(entry) for entry in padded)


def matrix(found: Mapping[str, Sequence[AuditRow]], lambdas: Sequence[float]) -> str:
    """Return the table of many rules, one column per λ: worst found / stated."""
    cells = [["rule", *(f"λ = {lam:g}" for lam in lambdas)]]
    for name, rows in found.items():
        at = {row.lam: f"{_number(row.worst.ratio)} / {_number(row.ours)}" for row in rows}
        cells.append([f"`{name}`", *(at.get(lam, "") for lam in lambdas)])
    cells.append(["floor λ/(1-2λ)", *(_number(lam / (1 - 2 * lam)) for lam in lambdas)])
    return _markdown(cells)


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    ruled = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def example(row: AuditRow) -> str:
    """Return a worst case as Python literals, in round numbers if they reproduce it."""
    case = plain(row.rule, row.worst, row.lam)
    if row.broken and not AuditRow(row.rule, row.lam, case).broken:
        case = row.worst
    found = f"ratio {case.ratio:.3g}"
    if not np.isfinite(case.result).all():
        found += " (the result is not finite)"
    elif math.isinf(case.ratio):
        found += " (the rows of G are equal, and the result differs from them)"
    if row.broken:
        found += f" is above the stated {row.ours:.6g}"
    elif row.unbounded:
        found = f"no constant: {found}"
    held = Fraction(int(case.weights[case.honest].sum()), int(case.weights.sum()))
    return (
        f"λ = {row.lam:g}: {found} at\n"
        f"  rows    {case.rows.tolist()}\n"
        f"  weights {case.weights.tolist()}\n"
        f"  G       {case.honest.nonzero()[0].tolist()}, with {float(held):.6g} of the weight\n"
        f"  result  {case.result.tolist()}\n"
    )


def ascii_plot(rows: Sequence[AuditRow]) -> str:
    """Return a text plot: one line per λ, logarithmic axis."""
    curves = _curves(rows)
    logs = [math.log(v) for _, values, _ in curves for v in values if v and v <= RUIN]
    low, high = min(logs, default=0.0), max(logs, default=1.0)
    text = [
        f"f floor, p published, | ours, o worst found, > unbounded; "
        f"logarithmic from {math.exp(low):.3g} to {math.exp(high):.3g}"
    ]
    for k, row in enumerate(rows):
        bar = [" "] * (WIDTH + 1)
        for (_, values, _), mark in zip(curves, "fp|o", strict=True):
            value = values[k]
            if value and value > RUIN:
                bar[WIDTH] = ">"
            elif value:
                bar[round(WIDTH * (math.log(value) - low) / ((high - low) or 1.0))] = mark
        text.append(f"{row.lam:5.3g} {''.join(bar).rstrip()}")
    return "\n".join(text)


def figure(name: str, rows: Sequence[AuditRow], path: Path) -> bool:
    """Plot the curve over λ into a file; return False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    drawing = Figure(figsize=(6, 4), layout="constrained")
    axes = drawing.subplots()
    for label, values, style in _curves(rows):
        shown = [math.nan if v is None or not 0 < v <= RUIN else v for v in values]
        if not all(map(math.isnan, shown)):
            axes.plot([row.lam for row in rows], shown, style, label=label)
    axes.set(title=name, xlabel="λ", ylabel="squared error / variance of G", yscale="log")
    axes.legend()
    drawing.savefig(path, dpi=150)
    return True


def _curves(rows: Sequence[AuditRow]) -> list[tuple[str, Values, str]]:
    return [
        ("floor λ/(1-2λ)", [row.floor for row in rows], "--"),
        ("published", [row.published for row in rows], ":"),
        ("ours", [row.ours for row in rows], "-"),
        ("worst found", [row.worst.ratio for row in rows], "o"),
    ]
