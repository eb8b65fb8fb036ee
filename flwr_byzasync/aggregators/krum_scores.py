"""Weighted Krum scores, shared by Krum, Multi-Krum and Bulyan."""

import torch
from torch import Tensor

from flwr_byzasync.aggregators.numerics import pairwise_distances
from flwr_byzasync.aggregators.selection import TIE


def krum_scores(rows: Tensor, weights: Tensor, share: float) -> Tensor:
    """Return ``min_ν ∫ ν(dy) ‖x_i − y‖²`` over the measures ν <= s of weight `share` times S.

    The minimiser holds the rows nearest to x_i, itself included, the last one fractionally.
    Rows at equal distance contribute the same whichever is cut, so ties need no special case.

    Parameters
    ----------
    rows : Tensor
        (m, d) floating.
    weights : Tensor
        (m,) float64 or int64.
    share : float
        Share of the weight that a neighbourhood holds, in (0, 1].

    Returns
    -------
    Tensor
        (m,) float64 in units of S; infinite for rows of weight zero. O(m² d + m² log m).
    """
    shares = weights.to(torch.float64)
    shares = shares / shares.sum()
    distance, order = pairwise_distances(rows, weights).sort(dim=1)
    own = shares[order]
    missing = share - (own.cumsum(dim=1) - own)
    # Otherwise the rounding residue of a full neighbourhood, times the squared distance of a far
    # row, would decide.
    missing = torch.where(missing > TIE * share, missing, 0.0)
    taken = torch.minimum(own, missing)
    # Rows of weight zero come last, infinitely far: infinity times 0 would be NaN.
    scores = (taken * torch.where(own > 0, distance, 0.0).square()).sum(dim=1)
    return torch.where(shares > 0, scores, torch.inf)
