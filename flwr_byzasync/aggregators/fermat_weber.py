"""Solver for the weighted Fermat-Weber problem in few dimensions, for the geometric median.

It runs on the CPU, where testing for convergence needs no synchronisation.
"""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from flwr_byzasync.aggregators.median import middle_values
from flwr_byzasync.aggregators.numerics import EPS

COLLINEAR = 1e-12
"""Sine of the angle up to which directions count as one line. Angles are scale-free, so a far
outlier cannot make the others look collinear."""
COINCIDENT = 256 * EPS
"""Points carry rounding of up to this factor of their norm, so closer ones count as equal.
Otherwise coincident rows would pull each other in random directions."""
MAX_STEPS = 200
DAMPING = 0.5 ** torch.arange(8, dtype=torch.float64)
"""Fractions of a Newton step to try: near a data point the full step is often too long."""
STRETCHING = 4.0 ** torch.arange(24, dtype=torch.float64)
"""Multiples of a Weiszfeld step to try: between two tight groups of nearly half of the weight
each the objective is flat, and next to one of them the step itself is tiny."""
NEWTON_DIMENSIONS = 2048
"""Above this many coordinates a Newton step, of cubic cost, is slower than Weiszfeld steps."""


def fermat_weber(points: Tensor, weights: Tensor) -> Tensor:
    """Return coefficients a with ``Σ a_i p_i = argmin_z Σ w_i ‖p_i − z‖``.

    At a data point the optimality test of Vardi and Zhang (2000, PNAS) decides exactly. Between
    data points, each step is the best of the Newton step, fractions of it, the Weiszfeld step and
    multiples of it, so the objective falls at every step and convergence is quadratic. For points
    on one line it is their weighted median, the midpoint where minimisers form a segment.
    Objectives are compared by a formula for their difference: a far outlier adds 1e20 to each,
    and subtraction would cancel the contribution of the others.

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
    # Go as far as the objective falls in that direction: close to a data point the direction to
    # it is rounding, and so is every step that starts there.
    _, step = _lowest(p, w, p[best], torch.outer(STRETCHING, step))
    return _descend(p, w, p[best] + step)


def _lowest(p: Tensor, w: Tensor, z: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best of some steps from `z`, preceded by its change of the objective."""
    changes = _change(p, w, z, z + steps).nan_to_num(nan=torch.inf)
    lowest = changes.argmin()
    return changes[lowest], steps[lowest]


def _steps_off(offset: Tensor, distance: Tensor, w: Tensor, here: int) -> Tensor:
    """Return steps off a data point by Ostresh's rule, limited by the curvature of the rest.

    One for the points at that position, and one for each larger group of points around it treated
    as one: with two points 1e-13 apart, the other one's curvature would leave no step at all.

    Parameters
    ----------
    offset, distance, w : Tensor
        (m, k) from the data point to each, their (m,) norms, and the (m,) weights.
    here : int
        Number of points at that position.

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
    """Return the index of the point with the smallest objective, the only possible minimiser."""
    origin = torch.zeros_like(p[0])
    return int(torch.cat([_change(p, w, origin, block) for block in torch.split(p, 1024)]).argmin())


def _change(p: Tensor, w: Tensor, z: Tensor, to: Tensor) -> Tensor:
    """Return the objective at the rows of `to` minus that at `z`, with error EPS·‖to − z‖."""
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
            break  # also for NaN: z coincides with a data point after rounding
        steps = torch.outer(STRETCHING, force / pull.sum())
        if p.shape[1] <= NEWTON_DIMENSIONS:
            hessian = pull.sum() * identity - units.t() @ (units * pull.unsqueeze(1))
            newton = torch.linalg.solve_ex(hessian, force).result
            steps = torch.cat([steps, torch.outer(DAMPING, newton)])
        change, step = _lowest(p, w, z, steps)
        if change >= -EPS * vector_norm(step):
            break  # the change is rounding
        z = z + step
    distance = vector_norm(p - z, dim=1)
    coincident = distance == 0
    pull = torch.where(coincident, w, 0.0) if coincident.any() else w / distance
    return pull / pull.sum()
