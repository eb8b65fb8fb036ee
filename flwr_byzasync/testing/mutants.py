"""Mutants: broken rules with typical mistakes, on which the conformance kit itself is tested.

Each is declared with a claim that it does not satisfy, and the law that must refute it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_byzasync.aggregators.bounds import sharp_bound
from flwr_byzasync.aggregators.mean import Mean
from flwr_byzasync.aggregators.median import CoordinateWiseMedian, middle_values
from flwr_byzasync.aggregators.rfa import RFA
from flwr_byzasync.aggregators.rule import Aggregator, Law

MEDIAN = CoordinateWiseMedian()
MEAN = Mean()


@dataclass(frozen=True)
class Mutant:
    """A broken rule and the claims made about it.

    Parameters
    ----------
    rule : Aggregator
        The rule.
    caught : str
        Name of the law that must refute it.
    laws : tuple of Law
        Laws that its author would declare, including the one it breaks.
    bound : callable or None
        The bound that its author would declare.
    """

    rule: Aggregator
    caught: str
    laws: tuple[Law, ...] = ()
    bound: Callable[[float], float] | None = None


# --- without a bound ---------------------------------------------------------------------------
def without_weights(rows: Tensor, weights: Tensor) -> Tensor:
    """Median that ignores the weights."""
    return MEDIAN(rows, (weights > 0).to(torch.int64))


def smoothed_by_the_farthest(rows: Tensor, weights: Tensor) -> Tensor:
    """Weiszfeld steps with a smoothing scale set by the farthest row."""
    used, used_weights = rows[weights > 0].double(), weights[weights > 0].double()
    z = MEDIAN(used, used_weights)
    for _ in range(50):
        distance = (used - z).norm(dim=1)
        pull = used_weights / distance.clamp(min=max(1e-2 * float(distance.max()), 1e-300))
        z = used[0] + pull @ (used - used[0]) / pull.sum()
    return z.to(rows.dtype)


def trimmed_on_one_side(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean of the rows with at most the median norm: liars near the origin are kept."""
    norms = torch.where(weights > 0, rows.double().norm(dim=1), 0.0).unsqueeze(1)
    near = norms[:, 0] <= MEDIAN(norms, weights)
    return MEAN(rows, weights * near)


def gram_distances(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean of the nearer half, with distances lost to rounding in a float32 Gram matrix."""
    used, used_weights = rows[weights > 0].float(), weights[weights > 0]
    centre = MEDIAN(used, used_weights)
    squares = used.square().sum(dim=1) + centre.square().sum() - 2.0 * used @ centre
    squares = squares.nan_to_num(posinf=3e38).unsqueeze(1)
    return MEAN(rows[weights > 0], used_weights * (squares[:, 0] <= MEDIAN(squares, used_weights)))


# --- without a law -----------------------------------------------------------------------------
def lower_half(rows: Tensor, weights: Tensor) -> Tensor:
    """Median that takes the lower of two middle values."""
    return middle_values(rows[weights > 0], weights[weights > 0])[0]


def exact_halves(rows: Tensor, weights: Tensor) -> Tensor:
    """Median that takes the midpoint only if a floating-point sum is exactly one half."""
    values, order = rows[weights > 0].sort(dim=0)
    above = weights[weights > 0].double()[order].cumsum(dim=0) / weights.double().sum()
    low, high = (above < 0.5).sum(dim=0), (above <= 0.5).sum(dim=0)
    last = len(values) - 1
    ends = [values.gather(0, i.clamp(max=last).unsqueeze(0))[0] for i in (low, high)]
    return ends[0] / 2 + ends[1] / 2


def weights_in_float32(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean with weights rounded to float32."""
    return MEAN(rows, weights.float())


def one_more_weight(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean that divides by S + 1, to avoid a division by zero."""
    used, used_weights = rows[weights > 0].double(), weights[weights > 0].double()
    return (used[0] + used_weights @ (used - used[0]) / (used_weights.sum() + 1.0)).to(rows.dtype)


def first_of_ties(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the heaviest row; among equally heavy ones, the first."""
    return rows[weights.double().argmax()].clone()


def clipped_at_two(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean of coordinates clipped to a fixed interval."""
    return MEAN(rows.clamp(-2.0, 2.0), weights)


def shrunk(rows: Tensor, weights: Tensor) -> Tensor:
    """Nine tenths of the mean."""
    return MEAN(rows, weights) * 0.9


def normalised_first(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean as a sum of products: equal rows of 0.1 do not give exactly 0.1."""
    used, used_weights = rows[weights > 0].double(), weights[weights > 0].double()
    return ((used_weights / used_weights.sum()) @ used).to(rows.dtype)


def beyond_the_rows(rows: Tensor, weights: Tensor) -> Tensor:
    """Median, moved slightly away from the mean."""
    median, mean = MEDIAN(rows, weights).double(), MEAN(rows, weights).double()
    return (median + (median - mean) / 16.0).to(rows.dtype)


# --- not a valid rule --------------------------------------------------------------------------
def sorts_in_place(rows: Tensor, weights: Tensor) -> Tensor:
    """Median that sorts the caller's rows in place."""
    result = MEDIAN(rows, weights)
    rows.copy_(rows.sort(dim=0).values)
    return result


def a_view(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the heaviest row as a view of the rows."""
    return rows[int(weights.double().argmax())]


def noisy(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean with noise from the global generator."""
    mean = MEAN(rows, weights)
    return mean + 1e-3 * torch.rand_like(mean)


def product_with_nothing(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean that multiplies NaN by a weight of zero."""
    used_weights = weights.double() / weights.double().sum()
    return (used_weights @ rows.double()).to(rows.dtype)


def zero_rows_count(rows: Tensor, weights: Tensor) -> Tensor:
    """Midpoint of the mean and of a median that counts rows of weight zero."""
    finite = rows.nan_to_num(0.0, 0.0, 0.0)
    return (finite.double().median(dim=0).values / 2 + MEAN(rows, weights) / 2).to(rows.dtype)


def always_double(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean that does not return the rows' dtype."""
    return MEAN(rows.double(), weights)


def squares_in_float32(rows: Tensor, weights: Tensor) -> Tensor:
    """Mean weighted by squares, which overflow at 3e38."""
    squares = torch.where(weights > 0, rows.float().square().sum(dim=1), 0.0)
    return MEAN(rows, weights * squares / (squares + 1.0) + 1e-9 * weights)


def two_rows_at_least(rows: Tensor, weights: Tensor) -> Tensor:
    """Median that reads the second row."""
    return MEDIAN(rows, weights) + 0.0 * rows[1].nan_to_num(0.0, 0.0, 0.0)


ALL = tuple(Law)
MUTANTS = (
    Mutant(MEAN, "BOUND", ALL, sharp_bound),
    Mutant(without_weights, "BOUND", (), sharp_bound),
    Mutant(without_weights, "COPIES", ALL),
    Mutant(smoothed_by_the_farthest, "BOUND", (), sharp_bound),
    Mutant(trimmed_on_one_side, "BOUND", (), sharp_bound),
    Mutant(gram_distances, "BOUND", (), lambda lam: 9.0 * sharp_bound(lam)),
    Mutant(lower_half, "HALVES", ALL),
    Mutant(exact_halves, "WEIGHT_SCALE", (Law.WEIGHT_SCALE,)),
    Mutant(weights_in_float32, "WEIGHT_SCALE", ALL),
    Mutant(one_more_weight, "WEIGHT_SCALE", (Law.WEIGHT_SCALE,)),
    Mutant(first_of_ties, "PERMUTATION", (Law.PERMUTATION, Law.WEIGHT_SCALE, Law.AGREEMENT)),
    Mutant(RFA(), "SCALE", ALL),
    Mutant(clipped_at_two, "SCALE", (Law.SCALE,)),
    Mutant(shrunk, "TRANSLATION", (Law.TRANSLATION,)),
    Mutant(shrunk, "AGREEMENT", (Law.AGREEMENT,)),
    Mutant(normalised_first, "AGREEMENT", (Law.AGREEMENT,)),
    Mutant(beyond_the_rows, "HULL", (Law.HULL,)),
    Mutant(sorts_in_place, "UNWRITTEN", ALL),
    Mutant(a_view, "UNWRITTEN"),
    Mutant(noisy, "REPEATABLE"),
    Mutant(product_with_nothing, "DEFINED"),
    Mutant(zero_rows_count, "ABSENT"),
    Mutant(always_double, "DTYPE"),
    Mutant(squares_in_float32, "DEFINED"),
    Mutant(two_rows_at_least, "DEFINED"),
)
