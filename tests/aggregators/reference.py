"""Reference implementations of the rules in NumPy long double, independent of the package."""

import numpy as np

Array = np.ndarray
LONG = np.longdouble


def _long(rows: Array, weights: Array) -> tuple[Array, Array]:
    w = np.asarray(weights).astype(LONG)
    return np.asarray(rows).astype(LONG), w / w.sum()


def norms(rows: Array) -> Array:
    return np.sqrt((rows * rows).sum(axis=-1))


def mean(rows: Array, weights: Array) -> Array:
    x, w = _long(rows, weights)
    return x[0] + w @ (x - x[0])


def cwmed(rows: Array, weights: Array) -> Array:
    """Midpoint of all values with at most half of the weight on either side; integer weights."""
    s = np.asarray(weights)
    below = np.stack([(s[:, None] * (rows < value)).sum(axis=0) for value in rows])
    above = np.stack([(s[:, None] * (rows > value)).sum(axis=0) for value in rows])
    medians = (2 * below <= s.sum()) & (2 * above <= s.sum()) & (s > 0)[:, None]
    x = rows.astype(LONG)
    low = np.where(medians, x, np.inf).min(axis=0)
    return (low + np.where(medians, x, -np.inf).max(axis=0)) / 2


def rfa(rows: Array, weights: Array, iterations: int = 3, nu: float = 1e-6) -> Array:
    x, w = _long(rows, weights)
    z = mean(rows, weights)
    for _ in range(iterations):
        pull = w / np.maximum(nu, norms(x - z))
        z = x[0] + (pull / pull.sum()) @ (x - x[0])
    return z


def gain(x: Array, w: Array, z: Array, step: Array) -> LONG:
    """Σ w (‖x − z‖ − ‖x − z − step‖), without subtracting what a far row adds to both."""
    before, after = norms(x - z), norms(x - z - step)
    total = np.where(before + after > 0, before + after, 1)
    return w @ ((step * (2 * (x - z) - step)).sum(axis=1) / total)


def gm(rows: Array, weights: Array) -> Array:
    """Damped Newton from the best row; Vardi and Zhang's test at that row."""
    if rows.shape[1] == 1:
        return cwmed(rows, weights)
    x, w = _long(rows, weights)
    start = cwmed(rows, weights).astype(LONG)
    z = x[np.argmax([gain(x, w, start, row - start) for row in x])]
    away = norms(x - z) > 0
    pull = w[away] / norms(x - z)[away]
    force, held = pull @ (x - z)[away], w[~away].sum()
    if norms(force) <= held:
        return z
    z = z + (1 - held / norms(force)) / pull.sum() * force
    for _ in range(300):
        distance = norms(x - z)
        if not distance.all():
            break
        pull, u = w / distance, (x - z) / distance[:, None]
        force, total = w @ u, pull.sum()
        if norms(force) <= 1e-14:
            break
        # (total·I − Uᵀ P U)⁻¹ force through an (m, m) system, P the diagonal of the pulls
        small = (np.diag(total / pull) - u @ u.T).astype(float)
        newton = (force + u.T @ _solved(small, (u @ force).astype(float))) / total
        steps = [force / total] + [newton * LONG(0.5) ** k for k in range(8)]
        gains = [gain(x, w, z, step) for step in steps]
        if not max(gains) > 0:
            break
        z = z + steps[int(np.argmax(gains))]
    return z


def _solved(matrix: Array, right: Array) -> Array:
    """Solve, or come as near as can be: on the line between two groups there is no curvature."""
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return np.linalg.lstsq(matrix, right, rcond=None)[0]


def residual(rows: Array, weights: Array, z: Array, scale: float = 1.0) -> float:
    """Norm of the smallest subgradient of Σ w_i ‖x_i − z‖, Σ w = 1: 0 at the minimiser.

    Rows within 1e-9 of `scale` count as met.
    """
    x, w = _long(rows, weights)
    distance = norms(x - z)
    near = distance <= 1e-9 * scale
    pull = (w[~near] / distance[~near]) @ (x - z)[~near] if (~near).any() else LONG(0) * z
    return float(max(norms(pull) - w[near].sum(), 0))


def ctma(rows: Array, weights: Array, lam: float, centre: Array) -> Array:
    """Mean of the (1 − λ) S of weight nearest to the centre; equal distances share."""
    x, w = _long(rows, weights)
    distance, target, kept = norms(x - centre), 1 - LONG(lam), LONG(0) * w
    for cut in np.unique(distance):
        tied = abs(distance - cut) <= 1e-12 * cut
        missing = target - kept[~tied].sum()
        kept[tied] = w[tied] * max(0, min(1, missing / w[tied].sum()))
    share = kept / kept.sum()
    return centre + share @ (x - centre)
