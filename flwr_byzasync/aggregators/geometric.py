"""Weighted geometric median (exact: Vardi and Zhang 2000, PNAS; weighted rule: Dahan, Levy)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_byzasync.aggregators.bounds import published_median_bound, sharp_bound
from flwr_byzasync.aggregators.fermat_weber import fermat_weber
from flwr_byzasync.aggregators.isometry import isometric_points
from flwr_byzasync.aggregators.median import CoordinateWiseMedian
from flwr_byzasync.aggregators.numerics import combine, heaviest_row
from flwr_byzasync.aggregators.rule import Law, RuleInfo, WeightedRule


@dataclass(frozen=True)
class GeometricMedian(WeightedRule):
    """Geometric median ``argmin_z Σ s_i ‖x_i − z‖``, solved until the gradient is rounding.

    Exact if the minimiser is one of the rows. If the minimisers form a segment (rows on a line
    with half the weight on each side of a gap), its midpoint.

    If rows nearly lie on a line with half of the weight on each side, float64 does not determine
    the position along it.

    Guarantees
    ----------
    ``‖A − x̄_G‖² <= ρ²/(1 − 2λ)`` for every λ < 1/2; proof in docs/theory/medians.md; sharp. The
    result is a weighted mean of the rows. Outliers do not set the scale: distances are measured
    from the coordinate-wise median, and convergence is judged by directions alone.
    No rule's constant is below λ/(1 − 2λ).

    Cost
    ----
    A coordinate-wise median, one QR decomposition of the centred rows, O(m² d), and a small
    problem in m dimensions on the CPU (one transfer of m² numbers each way).

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1e6, 1e6]])
    >>> GeometricMedian()(rows, torch.tensor([3, 1, 1, 1]))
    tensor([0., 0.])
    """

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="gm",
        laws=frozenset(Law),
        bound=sharp_bound,
        sources=("Dahan and Levy 2024, arXiv 2501.09621, section 3", "docs/theory/medians.md"),
        published=published_median_bound,
        balanced=True,
    )

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded geometric median."""
        centre = CoordinateWiseMedian().aggregate(rows, weights).nan_to_num()
        points = isometric_points(rows, weights, centre)
        coefficients = fermat_weber(points.cpu(), weights.double().cpu())
        coefficients = coefficients.to(rows.device)
        # Relative to the row of largest coefficient, a median that is a row is exactly that row.
        return combine(rows, coefficients, heaviest_row(rows, coefficients))
