"""Sums over (m, d) rows, accurate to float64 for any dtype and scale of the rows.

They run over blocks of columns, so that a float64 copy of all rows never exists, and relative to
a centre, so that rows of norm 500 that differ by 1e-4 lose no digits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps
"""2⁻⁵², twice the unit roundoff of float64."""
BLOCK = 1 << 16
"""Elements per block: 512 KiB in float64, which fits a core's cache."""


def as_weights(weights: Tensor, device: torch.device) -> Tensor:
    """Return weights as int64 (exact cumulative sums) or float64 on the rows' device.

    If the largest floating one is beyond 2^±200, all are divided by a power of two, which is
    exact, so that no sum or product of them overflows or underflows.
    """
    weights = weights.detach().to(device)
    if not weights.is_floating_point():
        return weights.to(torch.int64)
    weights = weights.to(torch.float64)
    _, exponent = torch.frexp(weights.max())
    return torch.ldexp(weights, torch.where(exponent.abs() > 200, -exponent.clamp(-1000, 1000), 0))


def all_finite(rows: Tensor, weights: Tensor) -> Tensor:
    """Whether every row of positive weight is finite, as a 0-dim bool on the rows' device."""
    finite = torch.stack([x.isfinite().all(dim=1) for x in column_blocks(rows)])
    return (finite.all(dim=0) | (weights == 0)).all()


def column_blocks(rows: Tensor) -> Iterator[Tensor]:
    """Yield views of consecutive columns, about `BLOCK` elements each."""
    yield from torch.split(rows, _width(rows), dim=1)


def paired_blocks(rows: Tensor, point: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same column blocks of (m, d) rows and of a (d,) point."""
    width = _width(rows)
    yield from zip(torch.split(rows, width, dim=1), torch.split(point, width), strict=True)


def heaviest_row(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the row of largest weight in float64: a centre within √m·R of the mean."""
    return rows.index_select(0, weights.argmax().reshape(1))[0].to(torch.float64)


def combine(rows: Tensor, coefficients: Tensor, centre: Tensor) -> Tensor:
    """Return ``centre + Σ a_i (x_i − centre)`` in float64.

    Parameters
    ----------
    rows : Tensor
        (m, d).
    coefficients : Tensor
        (m,) float64. Rows with coefficient zero are not read.
    centre : Tensor
        (d,) float64. With ``Σ a_i = 1`` it cancels, and the rows' common rounding with it.

    Returns
    -------
    Tensor
        (d,) float64, with error about m·u·Σ|a_i|·‖x_i − centre‖ + u·‖result‖.
    """
    return centre + combined_offset(rows, coefficients, centre)


def combined_offset(rows: Tensor, coefficients: Tensor, centre: Tensor) -> Tensor:
    """Return ``Σ a_i (x_i − centre)``, which `combine` adds to the centre."""
    used = (coefficients != 0).unsqueeze(1)
    return torch.cat(
        [coefficients @ torch.where(used, x - c, 0.0) for x, c in paired_blocks(rows, centre)]
    )


def squared_distances(rows: Tensor, centre: Tensor, offset: Tensor | None = None) -> Tensor:
    """Return ``‖x_i − centre − offset‖²`` from differences, never from a Gram matrix.

    Parameters
    ----------
    rows : Tensor
        (m, d).
    centre : Tensor
        (d,) float64.
    offset : Tensor, optional
        (d,) float64, small; added to the centre it would lose its last digits.

    Returns
    -------
    Tensor
        (m,) float64.
    """
    rest = torch.zeros_like(centre) if offset is None else offset
    total = torch.zeros(rows.shape[0], dtype=torch.float64, device=rows.device)
    pairs = zip(paired_blocks(rows, centre), torch.split(rest, _width(rows)), strict=True)
    for (x, c), o in pairs:
        total += (x - c - o).square().sum(dim=1)
    return total


def norms(rows: Tensor) -> Tensor:
    """Return the (m,) norms of (m, d) rows in float64."""
    origin = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    return squared_distances(rows, origin).sqrt()


def pairwise_distances(rows: Tensor, weights: Tensor) -> Tensor:
    """Return ``‖x_i − x_j‖``, from differences, never from a Gram matrix.

    Parameters
    ----------
    rows : Tensor
        (m, d).
    weights : Tensor
        (m,). Rows of weight zero are infinitely far from every row, themselves included.

    Returns
    -------
    Tensor
        (m, m) float64, symmetric, its diagonal 0 where the weight is positive. O(m² d).
    """
    used = (weights > 0).unsqueeze(1)
    exact = "donot_use_mm_for_euclid_dist"
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for block in column_blocks(rows):
        x = torch.where(used, block, 0.0).to(torch.float64)
        total += torch.cdist(x, x, compute_mode=exact).square()
    return torch.where(used & used.T, total.sqrt(), torch.inf)


def _width(rows: Tensor) -> int:
    return max(1, BLOCK // rows.shape[0])
