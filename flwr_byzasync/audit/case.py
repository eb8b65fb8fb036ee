"""One audit case: rows, weights, the honest set G, and the rule's error ratio."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from flwr_byzasync.aggregators.rule import Aggregator, aggregate_float64

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Mask = NDArray[np.bool_]

ROUNDING = 1e-12
"""Errors up to this fraction of the largest coordinate count as the rule's rounding."""
RUIN = 1e6
"""Ratios above this count as unbounded."""


@dataclass(frozen=True)
class Case:
    """Rows, weights, the honest set, and the result of a rule with its error ratio.

    Parameters
    ----------
    rows : ndarray
        (m, d) float64.
    weights : ndarray
        (m,) positive int64.
    honest : ndarray
        (m,) bool: the set G, which holds at least (1 − λ)S of the weight.
    result : ndarray
        (d,) float64, what the rule returned.
    ratio : float
        ``‖result − x̄_G‖²/ρ²``; inf if ρ = 0 and the result differs from x̄_G, or is not finite.
    """

    rows: Floats
    weights: Counts
    honest: Mask
    result: Floats
    ratio: float


class RuleError(ValueError):
    """A rule that cannot be audited: it raises, or does not return a valid direction."""


def evaluate(rule: Aggregator, rows: Floats, weights: Counts, honest: Mask) -> Case:
    """Call the rule on copies of the inputs, and return the case with its result.

    Raises
    ------
    RuleError
        If the rule raises, or does not return (d,) float64, or writes to its inputs.
    """
    values = _call(rule, rows, weights)
    bad = not np.isfinite(values).all()
    ratio = math.inf if bad else fast_ratio(rows, weights, honest, values)
    return Case(rows, weights, honest, values, ratio)


def _call(rule: Aggregator, rows: Floats, weights: Counts) -> Floats:
    own_rows, own_weights, (m, d) = rows.copy(), weights.copy(), rows.shape
    try:
        result = aggregate_float64(rule, torch.from_numpy(own_rows), torch.from_numpy(own_weights))
    except Exception as error:
        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RuleError(f"it raised {message} for {m} rows of {d}") from error
    if not isinstance(result, torch.Tensor):
        raise RuleError(f"it returned {type(result).__name__}, not a tensor")
    if result.shape != (d,) or result.dtype != torch.float64:
        returned = f"{tuple(result.shape)} {result.dtype}"
        raise RuleError(f"it returned {returned} instead of ({d},) torch.float64")
    if not ((own_rows == rows).all() and (own_weights == weights).all()):
        raise RuleError("it wrote to its inputs")
    values: Floats = result.detach().cpu().numpy()
    return values


def fast_ratio(rows: Floats, weights: Counts, honest: Mask, result: Floats) -> float:
    """Return ``‖result − x̄_G‖²/ρ²`` in float64, with the rule's possible rounding deducted."""
    share = weights * honest / (weights @ honest)
    mean = share @ rows
    offset, away = rows - mean, result - mean
    distance = math.sqrt(away @ away) - ROUNDING * float(abs(rows).max())
    spread = float(share @ (offset * offset).sum(axis=1))
    return _quotient(distance, spread)


def exact_ratio(rows: Floats, weights: Counts, honest: Mask, result: Floats) -> float:
    """Return the same ratio from rational arithmetic, for a finite result."""
    x = [[Fraction(v) for v in row] for row in rows.tolist()]
    inside = [(int(w), row) for w, row, h in zip(weights, x, honest, strict=True) if h]
    total = sum(w for w, _ in inside)
    mean = [sum((w * row[k] for w, row in inside), Fraction()) / total for k in range(len(x[0]))]
    offsets = [(w, _square(row, mean)) for w, row in inside]
    spread = sum((w * square for w, square in offsets), Fraction()) / total
    away = _square([Fraction(v) for v in result.tolist()], mean)
    distance = math.sqrt(away) - ROUNDING * float(abs(rows).max())
    return _quotient(distance, float(spread))


def _square(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum(((p - q) ** 2 for p, q in zip(a, b, strict=True)), Fraction())


def _quotient(distance: float, spread: float) -> float:
    if distance <= 0.0:
        return 0.0
    return distance * distance / spread if spread > 0.0 and distance < math.inf else math.inf


def plain(rule: Aggregator, case: Case, lam: float | Fraction) -> Case:
    """Return an equivalent case in round numbers, or the case itself if none is found.

    Parameters
    ----------
    rule : Aggregator
        The rule of the case.
    case : Case
        What `worst_case` returned.
    lam : float or Fraction
        λ of the search.

    Returns
    -------
    Case
        Its ratio is at least 0.99 times the case's, or above 1e6 if the case's is.
    """
    share = lam if isinstance(lam, Fraction) else Fraction(str(lam))
    enough = min(0.99 * case.ratio, RUIN)
    for parts in (10, 20, 100, 1000, 10**5, 10**7, 10**9):
        total = share.denominator * -(-parts // share.denominator)
        weights = np.zeros_like(case.weights)
        for side, held in ((case.honest, (1 - share) * total), (~case.honest, share * total)):
            weights[side] = _apportioned(case.weights[side], int(held))
        used = weights > 0
        if getattr(rule, "trusted", ()) and not used.all():
            continue
        for digits in (0, 1, 2, 3, 6):
            rows = np.round(case.rows / (abs(case.rows).max() or 1.0), digits)[used] + 0.0
            places: Floats = rows.astype(np.float64)
            found = evaluate(rule, places, weights[used], case.honest[used])
            if found.ratio >= enough:
                return found
    return case


def _apportioned(weights: Counts, total: int) -> Counts:
    """Return integers proportional to the weights up to rounding, with sum `total`."""
    exact = weights * (total / max(int(weights.sum()), 1))
    whole: Counts = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact)[: total - int(whole.sum())]] += 1
    return whole
