"""The weighted Fermat-Weber problem in few dimensions: the core of the geometric median.

It runs on the CPU, where asking whether it has converged costs nothing.
"""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from flwr_byzasync.aggregators.median import middle_values

EPS = torch.finfo(torch.float64).eps
COLLINEAR = 1e-12
"""Sine of the angle up to which directions count as one line. An angle has no scale, so no far
outlier can make the others look collinear."""
MAX_STEPS = 200
NEWTON_DIMENSIONS = 512
"""Above this many coordinates a Newton step's cubic cost is worse than many Weiszfeld steps."""


def fermat_weber(points: Tensor, weights: Tensor) -> Tensor:
    """Return coefficients a with ``Σ a_i p_i = argmin_z Σ w_i ‖p_i − z‖``.

    At a data point the optimality test of Vardi and Zhang (2000, PNAS) decides exactly. Between
    data points, each step takes the better of Newton's and Weiszfeld's, so the objective falls
    at every step and the end is quadratic. Points on one line have a weighted median instead,
    the midpoint where minimisers form a segment.

    Parameters
    ----------
    points : Tensor
        (m, k) finite float64 on the CPU.
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
        mass = weights[used]
        coefficients[used] = _solve(points[used], mass / mass.sum())
    return coefficients


def _solve(p: Tensor, w: Tensor) -> Tensor:
    best = _best_data_point(p, w)
    offset = p - p[best]
    distance = vector_norm(offset, dim=1)
    here = distance == 0
    if here.all():
        return w
    units = offset[~here] / distance[~here].unsqueeze(1)
    along = units @ units[0]
    if bool((vector_norm(units - along.unsqueeze(1) * units[0], dim=1) <= COLLINEAR).all()):
        return _median_on_line(offset @ units[0], w)
    pull = w[~here] @ units
    resistance = w[here].sum()
    if vector_norm(pull) <= resistance * (1 + p.shape[0] * EPS):
        return torch.where(here, w, 0.0) / resistance
    # Ostresh's step off a data point: downhill by as much as the curvature of the rest allows.
    step = (1 - resistance / vector_norm(pull)) / (w[~here] / distance[~here]).sum()
    return _descend(p, w, p[best] + step * pull)


def _best_data_point(p: Tensor, w: Tensor) -> int:
    """Index of the point with the smallest objective; only it can be a minimiser."""
    exact = "donot_use_mm_for_euclid_dist"
    costs = [torch.cdist(block, p, compute_mode=exact) @ w for block in torch.split(p, 1024)]
    return int(torch.cat(costs).argmin())


def _median_on_line(position: Tensor, w: Tensor) -> Tensor:
    low, high = middle_values(position.unsqueeze(1), w)
    at_low, at_high = (torch.where(position == end, w, 0.0) for end in (low, high))
    return at_low / (2 * at_low.sum()) + at_high / (2 * at_high.sum())


def _descend(p: Tensor, w: Tensor, z: Tensor) -> Tensor:
    """Minimise from `z`, whose objective is below that of every data point."""
    identity = torch.eye(p.shape[1], dtype=p.dtype)
    cost, stalled = torch.inf, 0
    for _ in range(MAX_STEPS):
        offset = p - z
        distance = vector_norm(offset, dim=1)
        units = offset / distance.unsqueeze(1)
        pull = w / distance
        force = w @ units
        candidates = [(pull @ p) / pull.sum()]
        if p.shape[1] <= NEWTON_DIMENSIONS:
            hessian = pull.sum() * identity - units.t() @ (units * pull.unsqueeze(1))
            candidates.insert(0, z + torch.linalg.solve_ex(hessian, force).result)
        costs = [
            float(torch.where(c.isfinite().all(), vector_norm(p - c, dim=1) @ w, torch.inf))
            for c in candidates
        ]
        lowest = min(costs)
        # Where the objective is flat to rounding, Newton still halves the digits missing.
        stalled = stalled + 1 if lowest >= cost else 0
        if bool(vector_norm(force) <= 4 * p.shape[0] * EPS) or stalled >= 3:
            break
        cost = min(cost, lowest)
        flat = costs[0] <= lowest * (1 + 4 * EPS)
        z = candidates[0 if flat else costs.index(lowest)]
    last: Tensor = w / vector_norm(p - z, dim=1)
    return last / last.sum()
