"""Statistics of vectors for attacks, in float64 and in units in which no square overflows."""

from typing import NamedTuple

import torch
from torch import Tensor

from flwr_byzasync.aggregators.numerics import column_blocks, paired_blocks
from flwr_byzasync.attacks.attack import Knowledge

TIED = 1e-9
"""Values that differ by less than this factor are equal: rounding must not decide."""


class Rows(NamedTuple):
    """(n, d) honest vectors as received, and their shares of the weight, (n,) float64."""

    vectors: Tensor
    shares: Tensor


class Moments(NamedTuple):
    """Weighted mean and (population) deviation of each coordinate, (d,) float64."""

    mean: Tensor
    deviation: Tensor


def rows_of(knowledge: Knowledge) -> Rows | None:
    """Return the known honest rows, or None before the first.

    Without weights each row counts once.
    """
    rows, weights = knowledge.rows, knowledge.weights
    if rows is None or rows.shape[0] == 0:
        return None
    if weights is None:
        weights = torch.ones(rows.shape[0], dtype=torch.int64)
    shares = weights.to(rows.device, torch.float64)
    return Rows(rows, shares / shares.sum())


def moments(rows: Rows) -> Moments:
    """Return mean and deviation, exact if all rows are equal.

    Guarantees
    ----------
    No intermediate overflow: mean and deviation of finite rows are finite.

    Cost
    ----
    Two passes over blocks of columns, without a float64 copy of all rows.
    """
    parts = [_moments(block, rows.shares) for block in column_blocks(rows.vectors)]
    mean, deviation = zip(*parts, strict=True)
    return Moments(torch.cat(mean), torch.cat(deviation))


def unit_of(vectors: Tensor) -> Tensor:
    """Return a power of two, 0-dim float64, within a factor of two below the largest value."""
    return _power(vectors.abs().amax().to(torch.float64))


def centred_gram(vectors: Tensor, mean: Tensor, unit: Tensor) -> Tensor:
    """Return ``⟨x_i − μ, x_j − μ⟩ / unit²``, (n, n) float64.

    Parameters
    ----------
    vectors : Tensor
        (n, d).
    mean : Tensor
        (d,) float64.
    unit : Tensor
        0-dim float64, from `unit_of`.
    """
    gram = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=vectors.device)
    for x, centre in paired_blocks(vectors, mean):
        # In float64 before the division: a 0-dim unit would not promote float32.
        offset = x.to(torch.float64) / unit - centre / unit
        gram += offset @ offset.t()
    return gram


def norm_of(vector: Tensor) -> Tensor:
    """Return the Euclidean norm, 0-dim float64, without intermediate overflow."""
    unit = unit_of(vector)
    norm: Tensor = torch.linalg.vector_norm(vector.to(torch.float64) / unit)
    return norm * unit


def direction_of(vector: Tensor) -> Tensor:
    """Return the unit vector in float64; along (1, ..., 1) if the vector is zero."""
    scaled = vector.to(torch.float64) / unit_of(vector)
    scaled = torch.where((scaled == 0).all(), 1.0, scaled)
    norm: Tensor = torch.linalg.vector_norm(scaled)
    return scaled / norm


def first_largest(values: Tensor) -> Tensor:
    """Return the index of the first of the values within 1e-9 of the largest, 0-dim int64.

    It is 0 where a value is NaN.
    """
    return (values >= values.amax() * (1.0 - TIED)).to(torch.uint8).argmax()


def clamped_like(vector: Tensor, honest: Tensor) -> Tensor:
    """Return a new tensor of the honest vector's dtype and device.

    Values beyond the dtype are clamped to its largest finite ones: the server refuses infinity,
    and a refused vector has no effect.
    """
    largest = torch.finfo(honest.dtype).max
    return vector.clamp(-largest, largest).to(device=honest.device, dtype=honest.dtype)


def _moments(block: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    unit = _power(block.abs().amax(dim=0).to(torch.float64))
    scaled = block / unit
    # Relative to the heaviest row, so that equal rows give that row and deviation zero.
    centre = scaled.index_select(0, shares.argmax().reshape(1))[0]
    mean = centre + shares @ (scaled - centre)
    deviation = (shares @ (scaled - mean).square()).sqrt()
    return mean * unit, deviation * unit


def _power(largest: Tensor) -> Tensor:
    """Return the power of two below each value, within the range in which its inverse is finite."""
    exponent = torch.frexp(largest).exponent - 1
    return torch.exp2(exponent.clamp(-1000, 1000).to(torch.float64))
