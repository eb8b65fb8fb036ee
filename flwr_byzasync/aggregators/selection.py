"""The weighted cut: rows in order of a key until they hold a target weight.

The row at the cut is taken only in part, and rows tied at the cut share that part in proportion
to their weights. `krum_scores` and `TrimmedMean` cut by cumulative sums instead: ties cannot
change their results, and with the functions here they would round differently.
"""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from flwr_byzasync.aggregators.numerics import EPS, combine, squared_distances

TIE = 1e-12
"""Keys that differ by less than this factor, or by less than the rounding of the point that they
are measured from, are tied: float64 cannot tell them apart, and rounding must not decide."""


def first_reaching(ordered: Tensor, held: Tensor, target_weight: Tensor) -> Tensor:
    """Return the first key at which the cumulative weight reaches a target.

    Parameters
    ----------
    ordered, held : Tensor
        (..., m) float64, keys in rising order and the weight up to each.
    target_weight : Tensor
        0-dim float64.

    Returns
    -------
    Tensor
        (..., 1) float64.
    """
    # Slack, or rounding in the sum of all weights could leave the cut beyond the last row.
    return _first(ordered, held >= target_weight * (1.0 - TIE))


def keep_nearest(
    distance: Tensor, weights: Tensor, share: float, tolerance: Tensor | float = 0.0
) -> Tensor:
    """Return the weight that remains of each row when the nearest hold `share` of it together.

    Parameters
    ----------
    distance : Tensor
        (m,) or (n, m) float64, not negative: one selection per row.
    weights : Tensor
        (m,). Rows of weight zero do not count.
    share : float
        In (0, 1].
    tolerance : Tensor or float
        0-dim or (n, 1), by how much distances may be off: the rounding of their centre.

    Returns
    -------
    Tensor
        The shape of `distance`, float64: rows nearer than the cut whole, rows at the cut in
        proportion, the others 0; each selection sums to `share` of the weight.
    """
    weights = weights.to(torch.float64)
    target_weight = share * weights.sum()
    # Rows of weight zero must not be where the cut falls.
    order = torch.where(weights > 0, distance, torch.inf).argsort(dim=-1)
    ordered, held = distance.gather(-1, order), weights[order].cumsum(dim=-1)
    cut = first_reaching(ordered, held, target_weight)
    return _kept(distance, weights, cut, TIE * cut + tolerance, target_weight)


def mean_nearest(rows: Tensor, weights: Tensor, centre: Tensor, share: float) -> Tensor:
    """Return the mean of the rows nearest to a (d,) float64 centre that hold `share` together."""
    distance = squared_distances(rows, centre).sqrt()
    kept = keep_nearest(distance, weights, share, 4 * EPS * vector_norm(centre))
    return combine(rows, kept / kept.sum(), centre)


def mean_around(rows: Tensor, weights: Tensor, median: Tensor, target_weight: Tensor) -> Tensor:
    """Return the mean, in each column, of the values nearest to `median` that hold a target.

    Parameters
    ----------
    rows, weights : Tensor
        (m, d) and (m,) float64.
    median : Tensor
        (d,) float64.
    target_weight : Tensor
        0-dim float64.

    Returns
    -------
    Tensor
        (d,) float64.
    """
    used = (weights > 0).unsqueeze(1)
    offset = torch.where(used, rows - median, 0.0)
    # Values of weight zero must not be where the cut falls.
    distance, order = torch.where(used, offset.abs(), torch.inf).t().contiguous().sort(dim=1)
    ordered_weights = weights[order]
    cut = first_reaching(distance, ordered_weights.cumsum(dim=1), target_weight)
    # Distances that differ by rounding, of the midpoint of two values above all, are equal.
    same = TIE * cut + 4.0 * EPS * median.abs().unsqueeze(1)
    kept = _kept(distance, ordered_weights, cut, same, target_weight)
    moved = (kept * offset.t().gather(1, order)).sum(dim=1) / kept.sum(dim=1)
    return median + moved


def clipping_threshold(norm: Tensor, weights: Tensor, share: float) -> Tensor:
    """Return the smallest norm beyond which at most a share of the weight lies.

    Parameters
    ----------
    norm, weights : Tensor
        (m,). Rows of weight zero do not count.
    share : float
        In [0, 1).

    Returns
    -------
    Tensor
        0-dim float64.
    """
    # Rows of weight zero must not be where the cut falls.
    order = torch.where(weights > 0, norm, -torch.inf).argsort(descending=True)
    held = weights[order].cumsum(dim=0)
    # Slack, or rounding in λ would decide where a row ends exactly at the share.
    return _first(norm[order], held > share * held[-1] * (1.0 + TIE))[0]


def _kept(
    distance: Tensor, weights: Tensor, cut: Tensor, same: Tensor, target_weight: Tensor
) -> Tensor:
    """Return rows nearer than the cut whole, and those tied with it in proportion."""
    near = distance < cut - same
    whole = torch.where(near, weights, 0.0)
    at_cut = torch.where(~near & (distance <= cut + same), weights, 0.0)
    missing = (target_weight - whole.sum(dim=-1, keepdim=True)).clamp(min=0.0)
    return whole + at_cut * (missing / at_cut.sum(dim=-1, keepdim=True)).clamp(max=1.0)


def _first(values: Tensor, where: Tensor) -> Tensor:
    """Return the value at the first place of the last axis where something is true, (..., 1)."""
    return values.gather(-1, where.to(torch.uint8).argmax(dim=-1, keepdim=True))
