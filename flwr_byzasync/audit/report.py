"""What an audit found, as tables, text and a figure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from flwr_byzasync.aggregators.rule import Aggregator, bound_of, published_of
from flwr_byzasync.audit.case import RUIN, Case, plain

SLACK = 1e-6
"""Of a bound: what is above it by less is rounding."""
WIDTH = 60
"""Characters of the curve that is drawn as text."""
Values = list[float | None]


@dataclass(frozen=True)
class AuditRow:
    """What was found for a rule at one λ.

    Parameters
    ----------
    rule : Aggregator
        The rule, made for this λ.
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
        """Whether no constant is stated, and none would hold."""
        return self.ours is None and self.worst.ratio > RUIN


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return "unbounded" if value > RUIN else f"{value:.4g}"


def table(lines: Sequence[AuditRow], *, markdown: bool) -> str:
    """Return one rule's table, a line for each λ."""
    cells = [["λ", "published", "ours", "worst found", "share of ours", "floor λ/(1-2λ)"]]
    for line in lines:
        share = f"{line.worst.ratio / line.ours:.1%}" if line.ours else "-"
        numbers = [line.published, line.ours, line.worst.ratio, line.floor]
        published, ours, found, floor = map(_number, numbers)
        cells.append([f"{line.lam:g}", published, ours, found, share, floor])
    if markdown:
        return _markdown(cells)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [[c.rjust(w) for c, w in zip(row, widths, strict=True)] for row in cells]
    return "\n".join("  ".join(row) for row in padded)


def matrix(found: Mapping[str, Sequence[AuditRow]], lambdas: Sequence[float]) -> str:
    """Return the table of many rules, a column for each λ: worst found / stated."""
    cells = [["rule", *(f"λ = {lam:g}" for lam in lambdas)]]
    for name, lines in found.items():
        at = {line.lam: f"{_number(line.worst.ratio)} / {_number(line.ours)}" for line in lines}
        cells.append([f"`{name}`", *(at.get(lam, "") for lam in lambdas)])
    cells.append(["floor λ/(1-2λ)", *(_number(lam / (1 - 2 * lam)) for lam in lambdas)])
    return _markdown(cells)


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    ruled = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def example(line: AuditRow) -> str:
    """Return a worst case as text that Python reads, in round numbers where they do."""
    case = plain(line.rule, line.worst, line.lam)
    if line.broken and not AuditRow(line.rule, line.lam, case).broken:
        case = line.worst
    found = f"ratio {case.ratio:.3g}"
    if not np.isfinite(case.result).all():
        found += " (the result is not finite)"
    elif math.isinf(case.ratio):
        found += " (the rows of G are equal, and the result is elsewhere)"
    if line.broken:
        found += f" is above the stated {line.ours:.6g}"
    elif line.unbounded:
        found = f"no constant: {found}"
    held = Fraction(int(case.weights[case.honest].sum()), int(case.weights.sum()))
    return (
        f"λ = {line.lam:g}: {found} at\n"
        f"  rows    {case.rows.tolist()}\n"
        f"  weights {case.weights.tolist()}\n"
        f"  G       {case.honest.nonzero()[0].tolist()}, which holds {float(held):.6g} of them\n"
        f"  result  {case.result.tolist()}\n"
    )


def ascii_plot(lines: Sequence[AuditRow]) -> str:
    """Return the curve as text: a line for each λ, a logarithmic axis."""
    curves = _curves(lines)
    logs = [math.log(v) for _, values, _ in curves for v in values if v and v <= RUIN]
    low, high = min(logs, default=0.0), max(logs, default=1.0)
    text = [
        f"f floor, p published, | ours, o worst found, > unbounded; "
        f"logarithmic from {math.exp(low):.3g} to {math.exp(high):.3g}"
    ]
    for k, line in enumerate(lines):
        bar = [" "] * (WIDTH + 1)
        for (_, values, _), mark in zip(curves, "fp|o", strict=True):
            value = values[k]
            if value and value > RUIN:
                bar[WIDTH] = ">"
            elif value:
                bar[round(WIDTH * (math.log(value) - low) / ((high - low) or 1.0))] = mark
        text.append(f"{line.lam:5.3g} {''.join(bar).rstrip()}")
    return "\n".join(text)


def figure(name: str, lines: Sequence[AuditRow], path: Path) -> bool:
    """Draw the curve over λ into a file; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    drawing = Figure(figsize=(6, 4), layout="constrained")
    axes = drawing.subplots()
    for label, values, style in _curves(lines):
        shown = [math.nan if v is None or not 0 < v <= RUIN else v for v in values]
        if not all(map(math.isnan, shown)):
            axes.plot([line.lam for line in lines], shown, style, label=label)
    axes.set(title=name, xlabel="λ", ylabel="squared error / variance of G", yscale="log")
    axes.legend()
    drawing.savefig(path, dpi=150)
    return True


def _curves(lines: Sequence[AuditRow]) -> list[tuple[str, Values, str]]:
    return [
        ("floor λ/(1-2λ)", [line.floor for line in lines], "--"),
        ("published", [line.published for line in lines], ":"),
        ("ours", [line.ours for line in lines], "-"),
        ("worst found", [line.worst.ratio for line in lines], "o"),
    ]
