"""Min-Max and Min-Sum: as far as honest vectors are apart (Shejwalkar, Houmansadr 2021, NDSS)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from flwr_byzasync._checks import check_choice, check_integer
from flwr_byzasync.aggregators.numerics import paired_blocks
from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs
from flwr_byzasync.attacks.vector_statistics import (
    Rows,
    centred_gram,
    clamped_like,
    moments,
    rows_of,
    unit_of,
)

PERTURBATIONS = ("sign", "std", "unit")


@dataclass(frozen=True)
class MinMax:
    """Send ``μ + γ p``, no farther from any honest vector than the largest honest distance.

    γ is the largest with ``max_j ‖μ + γ p − x_j‖ <= max_ij ‖x_i − x_j‖``, the smallest of the
    roots of n quadratics. Weights enter μ and σ only.

    Parameters
    ----------
    perturbation : {"std", "unit", "sign"}
        p is −σ, −μ/‖μ‖ or −sign(μ); "std" was the strongest in most of the paper's experiments.
    memory : int, default 10
        Number of its own earlier vectors that a node without better knowledge estimates from, >= 1.

    Raises
    ------
    ConfigError
        If a parameter is not legal.

    Notes
    -----
    Before any honest vector is known, the node's own honest vector is sent. If p is zero, the
    mean is sent.

    Cost
    ----
    All pairwise distances, O(n² d). γ is closed-form; the paper uses bisection.

    Examples
    --------
    >>> import torch
    >>> known = Knowledge(rows=torch.tensor([[0.0], [2.0]]), weights=torch.tensor([1, 1]))
    >>> MinMax().craft(torch.tensor([3.0]), known)
    tensor([0.])
    """

    perturbation: str = "std"
    memory: int = 10

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="min_max",
        needs=Needs.COLLUDERS,
        sources=("Shejwalkar and Houmansadr 2021, NDSS, section on AGR-agnostic attacks",),
    )

    def __post_init__(self) -> None:
        _check(self.perturbation, self.memory)

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        return _craft(honest, knowledge, self.perturbation, _min_max)


@dataclass(frozen=True)
class MinSum:
    """Send ``μ + γ p``, with a sum of squared distances no larger than an honest vector's.

    γ is the largest with ``Σ_j s_j ‖μ + γ p − x_j‖² <= max_i Σ_j s_j ‖x_i − x_j‖²``. Both sums
    are S·(variance + squared distance from μ), so γ is ``max_i ‖x_i − μ‖ / ‖p‖``: the liar is
    exactly as far from the mean as the farthest honest vector.

    Parameters
    ----------
    perturbation : {"std", "unit", "sign"}
        p is −σ, −μ/‖μ‖ or −sign(μ); "std" was the strongest in most of the paper's experiments.
    memory : int, default 10
        Number of its own earlier vectors that a node without better knowledge estimates from, >= 1.

    Raises
    ------
    ConfigError
        If a parameter is not legal.

    Notes
    -----
    Before any honest vector is known, the node's own honest vector is sent. If p is zero, the
    mean is sent.

    Examples
    --------
    >>> import torch
    >>> known = Knowledge(rows=torch.tensor([[0.0], [4.0]]), weights=torch.tensor([1, 3]))
    >>> MinSum().craft(torch.tensor([3.0]), known)
    tensor([0.])
    """

    perturbation: str = "std"
    memory: int = 10

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="min_sum",
        needs=Needs.COLLUDERS,
        sources=("Shejwalkar and Houmansadr 2021, NDSS, section on AGR-agnostic attacks",),
    )

    def __post_init__(self) -> None:
        _check(self.perturbation, self.memory)

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        return _craft(honest, knowledge, self.perturbation, _min_sum)


class _Geometry(NamedTuple):
    """Everything γ depends on, in squared units: its size does not depend on d."""

    gram: Tensor  # ⟨x_i − μ, x_j − μ⟩
    along: Tensor  # ⟨p, x_j − μ⟩
    length: Tensor  # ‖p‖²


def _check(perturbation: object, memory: object) -> None:
    fix = "pass for example perturbation='std'"
    check_choice("perturbation", perturbation, PERTURBATIONS, fix=fix)
    check_integer("memory", memory, low=1, fix="pass for example memory=10")


def _craft(
    honest: Tensor,
    knowledge: Knowledge,
    perturbation: str,
    largest: Callable[[_Geometry], Tensor],
) -> Tensor:
    rows = rows_of(knowledge)
    if rows is None:
        return honest.clone()
    unit = unit_of(rows.vectors)
    mean, deviation = (part / unit for part in moments(rows))
    p = _perturbation(perturbation, mean, deviation)
    geometry = _geometry(rows, mean, p, unit)
    gamma = torch.where(geometry.length > 0, largest(geometry), 0.0)
    return clamped_like((mean + gamma * p) * unit, honest)


def _perturbation(name: str, mean: Tensor, deviation: Tensor) -> Tensor:
    if name == "std":
        # Normalised, because γ absorbs any length.
        return -deviation / _positive(vector_norm(deviation))
    if name == "unit":
        return -mean / _positive(vector_norm(mean))
    return -mean.sign()


def _geometry(rows: Rows, mean: Tensor, p: Tensor, unit: Tensor) -> _Geometry:
    gram = centred_gram(rows.vectors, mean * unit, unit)
    along = torch.zeros_like(rows.shares)
    pairs = zip(paired_blocks(rows.vectors, mean), paired_blocks(rows.vectors, p), strict=True)
    for (x, centre), (_, push) in pairs:
        along += (x.to(torch.float64) / unit - centre) @ push
    return _Geometry(gram, along, p.square().sum())


def _min_max(geometry: _Geometry) -> Tensor:
    gram, along, length = geometry
    own = gram.diagonal()
    widest = (own.unsqueeze(1) + own - 2.0 * gram).amax()
    # length·γ² − 2·along·γ + own − widest = 0; μ is in the hull, so widest is no less than own.
    room = (widest - own).clamp(min=0.0)
    root = (along.square() + length * room).sqrt()
    # Of the two forms of the larger root, use the one without cancellation.
    safe = torch.where(along < 0, room / _positive(root - along), (along + root) / length)
    return safe.amin()


def _min_sum(geometry: _Geometry) -> Tensor:
    return (geometry.gram.diagonal().amax() / geometry.length).sqrt()


def _positive(number: Tensor) -> Tensor:
    return torch.where(number > 0, number, 1.0)
