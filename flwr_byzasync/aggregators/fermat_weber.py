"""The weighted Fermat-Weber problem in few dimensions: the core of the geometric median.

It runs on the CPU, where asking whether it has converged costs nothing.
"""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from flwr_byzasync.aggregators.median import middle_values
from flwr_byzasync.aggregators.numerics import EPS

COLLINEAR = 1e-12
"""Sine of the angle up to which directions count as one line. An angle has no scale, so no far
outlier can make the others look collinear."""
COINCIDENT = 256 * EPS
"""Points carry rounding of up to this factor of their norm: two that are closer are the same
point, or rows that coincide would pull one another in directions made of rounding."""
MAX_STEPS = 200
DAMPING = 0.5 ** torch.arange(8, dtype=torch.float64)
"""Parts of a Newton step that are tried: near a data point the whole one is often too long."""
STRETCHING = 4.0 ** torch.arange(24, dtype=torch.float64)
"""Multiples of a Weiszfeld step that are tried: where two tight groups hold nearly half of the
weight each, the objective is flat between them, and beside one of them the step itself is tiny."""
NEWTON_DIMENSIONS = 2048
"""Above this many coordinates a Newton step's cubic cost is worse than many Weiszfeld steps."""


def fermat_weber(points: Tensor, weights: Tensor) -> Tensor:
    """Return coefficients a with ``Σ a_i p_i = argmin_z Σ w_i ‖p_i − z‖``.

    At a data point the optimality test of Vardi and Zhang (2000, PNAS) decides exactly. Between
    data points, each step takes the best of Newton's, parts of it, Weiszfeld's and multiples of
    it, so the objective falls at every step and the end is quadratic. Points on one line have a
    weighted median instead, the midpoint where minimisers form a segment. Objectives are
    compared by a formula for their difference: a far outlier adds 1e20 to each, and subtraction
    would leave nothing of what the others say.

    Parameters
    ----------
    points : Tensor
        (m, k) finite float64 on the CPU, the origin among the bulk of them.
    weights : Tensor
        (m,) float64, non-negative.

    Returns
    -------
    Tensor
        (m,) float64, non-negative with sum 1, zero where the weight is. The norm of the
        gradient per unit of weight is at most 4·m·2⁻⁵² or what rounding of the points leaves.
    """
    coefficients = torch.zeros_like(weights)
    used = weights > 0
    if used.any():
        positive = weights[used]
        coefficients[used] = _solve(points[used], positive / positive.sum())
    return coefficients


def _solve(p: Tensor, w: Tensor) -> Tensor:
    best = _best_data_point(p, w)
    offset = p - p[best]
    distance, norm = vector_norm(offset, dim=1), vector_norm(p, dim=1)
    tolerance = COINCIDENT * (norm + norm[best])
    here = distance <= tolerance
    if here.all():
        return w
    line = offset[distance.argmax()] / distance.max()
    along = offset @ line
    aside = vector_norm(offset - along.unsqueeze(1) * line, dim=1)
    if bool((here | (aside <= COLLINEAR * distance + tolerance)).all()):
        return _median_on_line(torch.where(here, 0.0, along), w)
    pull = (w[~here] / distance[~here]) @ offset[~here]
    resistance = w[here].sum()
    if vector_norm(pull) <= resistance * (1 + p.shape[0] * EPS):
        return torch.where(here, w, 0.0) / resistance
    steps = _steps_off(offset, distance, w, int(here.sum()))
    change, step = _lowest(p, w, p[best], steps)
    if not bool(change < 0):
        return torch.where(here, w, 0.0) / resistance
    # As far as that way goes down: close to a data point the direction to it is rounding, and
    # so is every step that starts there.
    _, step = _lowest(p, w, p[best], torch.outer(STRETCHING, step))
    return _descend(p, w, p[best] + step)


def _lowest(p: Tensor, w: Tensor, z: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the best of some steps from `z` changes, and that step."""
    changes = _change(p, w, z, z + steps).nan_to_num(nan=torch.inf)
    lowest = changes.argmin()
    return changes[lowest], steps[lowest]


def _steps_off(offset: Tensor, distance: Tensor, w: Tensor, here: int) -> Tensor:
    """Return steps off a data point, by Ostresh's rule: as far as the curvature of the rest allows.

    One for the points that are there, and one for each larger group of points around it taken as
    one: of two points 1e-13 apart, the other one's curvature would leave no step at all.

    Parameters
    ----------
    offset, distance, w : Tensor
        (m, k) from the data point to each, their (m,) norms, and the (m,) weights.
    here : int
        How many points are there.

    Returns
    -------
    Tensor
        (m − here, k), zero where a group holds the point.
    """
    order = distance.argsort()
    near, far = order[:here], order[here:]
    pulls = w[far] / distance[far]
    rest = (pulls.unsqueeze(1) * offset[far]).flip(0).cumsum(dim=0).flip(0)
    curvature = pulls.flip(0).cumsum(dim=0).flip(0)
    held = w[near].sum() + w[far].cumsum(dim=0) - w[far]
    length = (1 - held / vector_norm(rest, dim=1)).clamp(min=0.0) / curvature
    steps: Tensor = length.nan_to_num(nan=0.0).unsqueeze(1) * rest
    return steps


def _best_data_point(p: Tensor, w: Tensor) -> int:
    """Index of the point with the smallest objective; only it can be a minimiser."""
    origin = torch.zeros_like(p[0])
    return int(torch.cat([_change(p, w, origin, block) for block in torch.split(p, 1024)]).argmin())


def _change(p: Tensor, w: Tensor, z: Tensor, to: Tensor) -> Tensor:
    """By how much the objective at the rows of `to` exceeds that at `z`: error EPS·‖to − z‖."""
    offset, step = p - z, to - z
    exact = "donot_use_mm_for_euclid_dist"
    sums = torch.cdist(to, p, compute_mode=exact) + vector_norm(offset, dim=1)
    # ‖o − s‖ − ‖o‖ = s·(s − 2o) / (‖o − s‖ + ‖o‖)
    differences = (step.square().sum(dim=1, keepdim=True) - 2 * step @ offset.t()) / sums
    return torch.where(sums > 0, differences, 0.0) @ w


def _median_on_line(position: Tensor, w: Tensor) -> Tensor:
    low, high = middle_values(position.unsqueeze(1), w)
    at_low, at_high = (torch.where(position == end, w, 0.0) for end in (low, high))
    return at_low / (2 * at_low.sum()) + at_high / (2 * at_high.sum())


def _descend(p: Tensor, w: Tensor, z: Tensor) -> Tensor:
    """Minimise from `z`, whose objective is below that of every data point."""
    identity = torch.eye(p.shape[1], dtype=p.dtype)
    for _ in range(MAX_STEPS):
        offset = p - z
        distance = vector_norm(offset, dim=1)
        units = offset / distance.unsqueeze(1)
        pull = w / distance
        force = w @ units
        if not bool(vector_norm(force) > 4 * p.shape[0] * EPS):
            break  # NaN too: z has met a data point by rounding
        steps = torch.outer(STRETCHING, force / pull.sum())
        if p.shape[1] <= NEWTON_DIMENSIONS:
            hessian = pull.sum() * identity - units.t() @ (units * pull.unsqueeze(1))
            newton = torch.linalg.solve_ex(hessian, force).result
            steps = torch.cat([steps, torch.outer(DAMPING, newton)])
        change, step = _lowest(p, w, z, steps)
        if change >= -EPS * vector_norm(step):
            break  # no more than its rounding
        z = z + step
    distance = vector_norm(p - z, dim=1)
    met = distance == 0
    pull = torch.where(met, w, 0.0) if met.any() else w / distance
    return pull / pull.sum()
