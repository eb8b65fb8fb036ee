"""Selecting part of the weight: the nearest, the lowest, the middle, without the largest."""

import torch
from torch import Tensor

from flwr_byzasync.aggregators.numerics import EPS

TIE = 1e-12
"""Rows whose distances differ by less than this factor, or by less than the rounding of the
centre, are equally far: float64 cannot tell them apart, and that rounding would decide."""


def keep_nearest(distance: Tensor, weights: Tensor, wanted: Tensor, blur: Tensor) -> Tensor:
    """Return the weights that remain of each row when the nearest hold `wanted` together.

    Parameters
    ----------
    distance, weights : Tensor
        (m,) float64.
    wanted : Tensor
        0-dim float64 in (0, S].
    blur : Tensor
        0-dim float64, how far off the distances may be by rounding of the point they start from.

    Returns
    -------
    Tensor
        (m,) float64 with sum `wanted`: rows nearer than the cut whole, rows at the cut in
        proportion, the others 0. No row of weight zero counts.
    """
    # Rows of weight zero must not be where the cut falls.
    order = torch.where(weights > 0, distance, torch.inf).argsort()
    # Slack, or rounding in the sum of all weights could leave the cut beyond the last row.
    reached = weights[order].cumsum(dim=0) >= wanted * (1.0 - TIE)
    cut = distance[order].gather(0, reached.to(torch.uint8).argmax(dim=0, keepdim=True))
    same = TIE * cut + blur
    near = distance < cut - same
    tied = ~near & (distance <= cut + same)
    whole = torch.where(near, weights, 0.0)
    at_cut = torch.where(tied, weights, 0.0)
    missing = (wanted - whole.sum()).clamp(min=0.0)
    return whole + at_cut * (missing / at_cut.sum()).clamp(max=1.0)


def mean_around(rows: Tensor, mass: Tensor, median: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean, in each column, of the values nearest to `median` that hold `wanted`."""
    used = (mass > 0).unsqueeze(1)
    offset = torch.where(used, rows - median, 0.0)
    # Values of weight zero must not be where the cut falls.
    distance, order = torch.where(used, offset.abs(), torch.inf).t().contiguous().sort(dim=1)
    weight = mass[order]
    # Slack, or rounding in the sum of all weights could leave the cut beyond the last value.
    reached = weight.cumsum(dim=1) >= wanted * (1.0 - TIE)
    cut = distance.gather(1, reached.to(torch.uint8).argmax(dim=1, keepdim=True))
    # Distances that differ by rounding, of the midpoint of two values above all, are equal.
    same = TIE * cut + 4.0 * EPS * median.abs().unsqueeze(1)
    near = distance < cut - same
    whole = torch.where(near, weight, 0.0)
    at_cut = torch.where(~near & (distance <= cut + same), weight, 0.0)
    missing = (wanted - whole.sum(dim=1, keepdim=True)).clamp(min=0.0)
    part = (missing / at_cut.sum(dim=1, keepdim=True)).clamp(max=1.0)
    kept = whole + at_cut * part
    moved = (kept * offset.t().gather(1, order)).sum(dim=1) / kept.sum(dim=1)
    return median + moved


def lowest(scores: Tensor, weights: Tensor, share: float) -> Tensor:
    """Return the weights that remain when the rows of lowest scores hold `share` of them.

    Parameters
    ----------
    scores, weights : Tensor
        (m,); scores not negative. Rows of equal scores share in proportion to their weights.
    share : float
        In (0, 1].

    Returns
    -------
    Tensor
        (m,) float64 with sum `share` times that of `weights`.
    """
    mass = weights.to(torch.float64)
    return keep_nearest(scores, mass, share * mass.sum(), torch.zeros_like(mass.sum()))


def largest_left(norm: Tensor, weights: Tensor, share: float) -> Tensor:
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
    beyond = held > share * held[-1] * (1.0 + TIE)
    return norm[order].gather(0, beyond.to(torch.uint8).argmax(dim=0, keepdim=True))[0]
