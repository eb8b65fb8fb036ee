"""Isometric reduction of the rows to at most m coordinates, for example from d = 10⁷."""

import torch
from torch import Tensor

from flwr_byzasync.aggregators.numerics import paired_blocks


def isometric_points(rows: Tensor, weights: Tensor, centre: Tensor) -> Tensor:
    """Return points of at most m coordinates with the distances of the rows.

    ``R`` of a QR decomposition of the centred rows' transpose, block by block. QR and not a
    Gram matrix, because its error in point i is relative to ``‖x_i − centre‖`` alone: a row at
    1e38 spoils no other, and coincident rows stay together to 1e-16, not 1e-8.

    Parameters
    ----------
    rows : Tensor
        (m, d). Rows of weight zero, and values that are not finite, count as the centre.
    weights : Tensor
        (m,).
    centre : Tensor
        (d,) float64 among the bulk of the rows; it becomes the origin.

    Returns
    -------
    Tensor
        (m, min(m, d)) float64 on the rows' device. Costs O(m² d).
    """
    count = rows.shape[0]
    used = (weights > 0).unsqueeze(1)
    factor = torch.empty(0, count, dtype=torch.float64, device=rows.device)
    for x, c in paired_blocks(rows, centre):
        y = x - c
        factor = torch.cat([factor, torch.where(used & y.isfinite(), y, 0.0).t()])
        # Only once another m rows have been added: each decomposition costs at least m³.
        if factor.shape[0] >= 2 * count:
            factor = torch.linalg.qr(factor, mode="r").R
    return (torch.linalg.qr(factor, mode="r").R if factor.shape[0] > count else factor).t()
