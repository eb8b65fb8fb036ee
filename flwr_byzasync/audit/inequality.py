"""The robustness inequality ``‖A − x̄_G‖² <= c ρ²``, checked over every admissible set G.

Used by the audit and by the conformance kit in `flwr_byzasync.testing`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np
import torch
from torch import Tensor

from flwr_byzasync.aggregators.rule import Aggregator

MOST_ROWS = 16
"""Largest m: all 2^m sets are enumerated."""
CHUNK = 1024
"""Sets per batch, so that 2^16 of them fit into memory."""
ROUNDINGS = 4
"""Units of rounding in the rows' dtype that a result may be off by, beside 1e-14 of its size."""


@dataclass(frozen=True)
class Worst:
    """The admissible set with the largest ratio for a result.

    Parameters
    ----------
    ratio : float
        ``‖A − x̄_G‖²/ρ²`` with possible rounding deducted from the distance: 0 if nothing is
        left of it, inf if ρ = 0 and something is, or if the result is not finite.
    honest : tuple of int
        G.
    mean : tuple of float
        ``x̄_G``.
    distance, deviation : float
        ``‖A − x̄_G‖`` and ρ.
    """

    ratio: float
    honest: tuple[int, ...]
    mean: tuple[float, ...]
    distance: float
    deviation: float


def exact_share(lam: Fraction | float) -> Fraction:
    """Return λ as a fraction; a float stands for its shortest decimal, 0.3 for 3/10.

    Examples
    --------
    >>> exact_share(0.3)
    Fraction(3, 10)
    """
    return lam if isinstance(lam, Fraction) else Fraction(repr(float(lam)))


def admissible(
    weights: Tensor | Sequence[float], lam: Fraction | float, trusted: Sequence[int] = ()
) -> np.ndarray:
    """Return every set G with ``Σ_G s_i >= (1 − λ) S``, decided in exact arithmetic.

    Parameters
    ----------
    weights : Tensor or sequence
        (m,) finite, non-negative, of positive sum; at most 16 positive ones. Integers of any
        size and floats are taken at their exact value.
    lam : Fraction or float
        λ in [0, 1/2); a float stands for its shortest decimal.
    trusted : sequence of int
        Rows that G must contain. A row of weight zero counts as absent: no set contains it.

    Returns
    -------
    ndarray
        (k, m) bool, one set per row; rows of weight zero are in none.

    Raises
    ------
    ValueError
        If more than 16 weights are positive.

    Examples
    --------
    >>> admissible([3, 1, 1], 0.2).astype(int)
    array([[1, 1, 0],
           [1, 0, 1],
           [1, 1, 1]])
    """
    whole = _integers(weights)
    used = [i for i, weight in enumerate(whole) if weight > 0]
    if len(used) > MOST_ROWS:
        raise ValueError(
            f"{len(used)} rows have positive weight: all their subsets are enumerated, so there "
            f"must be at most {MOST_ROWS}; pass fewer rows."
        )
    masks = np.arange(1, 2 ** len(used))[:, None] >> np.arange(len(used)) & 1
    sets = np.zeros((len(masks), len(whole)), dtype=bool)
    sets[:, used] = masks.astype(bool)
    share = exact_share(lam)
    needed = (share.denominator - share.numerator) * sum(whole)
    exact = np.int64 if sum(whole) * share.denominator < 2**62 else object
    held = sets.astype(exact) @ np.array(whole, dtype=exact) * share.denominator
    inside = np.array([i < len(whole) for i in trusted], dtype=bool)
    holds = sets[:, list(trusted)].all(axis=1) if inside.all() else np.zeros(len(sets), bool)
    chosen: np.ndarray = sets[(held >= needed).astype(bool) & holds]
    return chosen


def worst(
    result: Tensor,
    rows: Tensor,
    weights: Tensor,
    lam: Fraction | float,
    trusted: Sequence[int] = (),
) -> Worst:
    """Return the admissible set with the largest ``‖result − x̄_G‖²/ρ²``.

    Means and deviations are computed in long double. Rounding may move a result by four units
    in the last place of the rows' dtype, relative to the largest row of G.

    Parameters
    ----------
    result, rows, weights : Tensor
        (d,), (m, d) and (m,).
    lam, trusted
        As for `admissible`.

    Returns
    -------
    Worst
        Its ratio is 0 and its set empty if no set is admissible.
    """
    unit = torch.finfo(rows.dtype).eps / 2
    tolerance = 1e-14 + (ROUNDINGS * unit if rows.dtype != torch.float64 else 0.0)
    used = weights.cpu() > 0
    # Values of weight-zero rows must not enter a product: 0 · NaN is NaN.
    x = _long(torch.where(used.unsqueeze(1), rows.detach().cpu().double(), 0.0))
    a, s = _long(result.detach().cpu().double()), _long(weights.cpu())
    found = Worst(-1.0, (), (), 0.0, 0.0)
    for sets in _chunks(admissible(weights, lam, trusted)):
        share = sets * s
        share = share / share.sum(axis=1, keepdims=True)
        # Relative to a row of G, so that equal rows of G have ρ = 0 exactly.
        start = x[sets.argmax(axis=1)]
        offset = x[None] - start[:, None]
        mean = np.einsum("km,kmd->kd", share, offset)
        squares = ((offset - mean[:, None]) ** 2).sum(axis=2)
        rho = np.sqrt((share * squares).sum(axis=1))
        distance = np.sqrt(((a - start - mean) ** 2).sum(axis=1))
        largest = (sets * np.sqrt((x**2).sum(axis=1))).max(axis=1)
        ratio = _ratio(distance, rho, tolerance * largest)
        i = int(ratio.argmax())
        if ratio[i] > found.ratio:
            honest, centre = np.flatnonzero(sets[i]).tolist(), map(float, start[i] + mean[i])
            largest_ratio = float(ratio[i])
            found = Worst(
                largest_ratio, tuple(honest), tuple(centre), float(distance[i]), float(rho[i])
            )
    return found if found.honest else Worst(0.0, (), (), 0.0, 0.0)


def ratio(
    rule: Aggregator,
    rows: Tensor,
    weights: Tensor,
    lam: Fraction | float,
    trusted: Sequence[int] = (),
) -> float:
    """Return the largest ``‖A − x̄_G‖²/ρ²`` over every admissible G, a lower bound on c.

    Parameters
    ----------
    rule : Aggregator
        Called once, as ``rule(rows, weights)``.
    rows, weights : Tensor
        (m, d) and (m,), at most 16 weights positive.
    lam, trusted
        As for `admissible`.

    Returns
    -------
    float
        inf if the rows of G are equal and the result differs from them.

    Examples
    --------
    >>> from flwr_byzasync.aggregators import CoordinateWiseMedian, Mean
    >>> rows, weights = torch.tensor([[0.0], [0.0], [0.0], [9.0]]), torch.tensor([1, 1, 1, 1])
    >>> ratio(Mean(), rows, weights, 0.25)
    inf
    >>> round(ratio(CoordinateWiseMedian(), rows, weights, 0.25), 3)
    0.5
    """
    return worst(rule(rows, weights), rows, weights, lam, trusted).ratio


def _ratio(distance: np.ndarray, rho: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """Return squared quotients, with 0/0 = 0."""
    over = np.maximum(distance - rounding, 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient: np.ndarray = np.where(over > 0, over / rho, 0.0) ** 2
    return np.where(np.isfinite(distance), quotient, np.inf)


def _integers(weights: Tensor | Sequence[float]) -> list[int]:
    """Return the weights times a common factor, as exact integers."""
    values = weights.tolist() if isinstance(weights, Tensor) else weights
    exact = [Fraction(value) for value in values]
    common = lcm(*(value.denominator for value in exact))
    return [int(value * common) for value in exact]


def _long(tensor: Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.longdouble)


def _chunks(sets: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(sets), CHUNK):
        yield sets[start : start + CHUNK]
