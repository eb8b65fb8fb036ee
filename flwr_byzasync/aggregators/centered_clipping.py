"""Centred clipping (Karimireddy, He and Jaggi 2021, ICML), weighted and stateless."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_byz_fraction, check_integer, check_number
from flwr_byzasync.aggregators.median import CoordinateWiseMedian
from flwr_byzasync.aggregators.numerics import combined_offset, squared_distances
from flwr_byzasync.aggregators.rule import Law, RuleInfo, WeightedRule
from flwr_byzasync.aggregators.selection import first_reaching

GOLDEN = (1.0 + math.sqrt(5.0)) / 2.0
"""φ: weight φλS lies at or beyond the default radius, of which liars hold λS at most and honest
rows λS/φ at least. This choice balances the two terms of the proof."""


def centered_clipping_bound(lam: float, iterations: int = 1) -> float:
    """Return the constant of the default radius, for λ in [0, 1/2).

    ``φ λ (1 − λ)(1 + 4 φ λ)/(1 − 2λ)`` after one step from the median, φ the golden ratio, and
    ``(√(φ λ (1 − λ)(1 + c)) + λ √c)²`` after one more step from a point with constant c.
    """
    part = GOLDEN * lam * (1.0 - lam)
    c = part * (1.0 + 4.0 * GOLDEN * lam) / (1.0 - 2.0 * lam)
    for _ in range(iterations - 1):
        c = (math.sqrt(part * (1.0 + c)) + lam * math.sqrt(c)) ** 2
    return c


@dataclass(frozen=True)
class CenteredClipping(WeightedRule):
    """Steps from the median towards the mean of the rows, with offsets clipped to a radius.

    ``v_0`` is the weighted coordinate-wise median, then
    ``v <- v + Σ s_i/S min(1, τ/‖x_i − v‖) (x_i − v)``. By default τ is recomputed in each
    step as the smallest radius around v that holds ``(1 − φ λ) S`` of the weight, φ = 1.618...
    the golden ratio: it scales with the rows. The published rule starts from the result of the
    previous round; this one is stateless, so a result depends only on rows and weights.

    Parameters
    ----------
    byz_fraction : float
        λ in [0, 1/2): the largest share of the weight that Byzantine nodes may hold. Unused
        if a radius is set.
    radius : float, optional
        τ in the units of the rows, in (0, inf). An absolute scale: with it the rule does not
        commute with scaling, and no c_λ exists.
    iterations : int, default 1
        Steps, >= 1. More steps have a smaller proved constant only for λ <= 0.3.

    Raises
    ------
    ConfigError
        If a setting is out of range.

    Guarantees
    ----------
    ``‖A − x̄_G‖² <= φ λ (1 − λ)(1 + 4 φ λ)/(1 − 2λ) ρ²`` with one step and the default radius;
    see `centered_clipping_bound` for more steps; proved in docs/theory/centered_clipping.md. It
    goes to 0 with λ, and covers any true share up to `byz_fraction`, and none beyond. With a fixed
    radius none exists: honest rows all at 0 and a liar at distance τ give λτ while ρ = 0.
    No rule's constant is below λ/(1 − 2λ).

    Cost
    ----
    A coordinate-wise median and two passes over the rows in each step, O(iterations m d).

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[0.0], [1.0], [2.0], [2.0], [100.0]])
    >>> CenteredClipping(byz_fraction=0.2)(rows, torch.ones(5))
    tensor([1.8000])
    >>> CenteredClipping(byz_fraction=0.2, radius=0.5)(rows, torch.ones(5))
    tensor([1.9000])
    """

    byz_fraction: float
    radius: float | None = None
    iterations: int = 1

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="centered_clipping",
        laws=frozenset(Law),
        bound=centered_clipping_bound,
        sources=(
            "Karimireddy, He, Jaggi 2021, arXiv 2012.10333",
            "docs/theory/centered_clipping.md: the default radius and its constant",
        ),
    )

    def __post_init__(self) -> None:
        check_byz_fraction("byz_fraction", self.byz_fraction)
        check_integer("iterations", self.iterations, low=1, fix="pass for example iterations=1")
        if self.radius is not None:
            fix = "pass None for a radius that follows the rows"
            check_number("radius", self.radius, low=0.0, closed="neither", fix=fix)

    @property
    def laws(self) -> frozenset[Law]:
        """All laws; all but SCALE with a fixed radius."""
        return self.INFO.laws if self.radius is None else self.INFO.laws - {Law.SCALE}

    def bound(self, lam: float) -> float | None:
        """c_λ at λ = `byz_fraction` for any share up to it; None with a fixed radius."""
        if self.radius is not None or lam > self.byz_fraction:
            return None
        return centered_clipping_bound(self.byz_fraction, self.iterations)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded last point."""
        weights = weights.to(torch.float64)
        # v is kept as an offset from the median: far from the origin it would lose digits.
        centre = CoordinateWiseMedian().aggregate(rows, weights).to(torch.float64)
        offset = torch.zeros_like(centre)
        for _ in range(self.iterations):
            distance = squared_distances(rows, centre, offset).sqrt()
            radius = self._radius(distance, weights)
            # A row at v itself contributes nothing, whatever its factor.
            factor = torch.where(distance > radius, radius / distance, 1.0)
            pull = torch.where(weights > 0, weights * factor / weights.sum(), 0.0)
            offset = (1.0 - pull.sum()) * offset + combined_offset(rows, pull, centre)
        return centre + offset

    def _radius(self, distance: Tensor, weights: Tensor) -> Tensor:
        """Return τ: the fixed one, or the distance within which (1 − φλ)S of the weight lies."""
        if self.radius is not None:
            return torch.full_like(weights[0], self.radius)
        order = torch.where(weights > 0, distance, torch.inf).argsort()
        held = weights[order].cumsum(dim=0)
        target_weight = (1.0 - GOLDEN * self.byz_fraction) * held[-1]
        return first_reaching(distance[order], held, target_weight)[0]
