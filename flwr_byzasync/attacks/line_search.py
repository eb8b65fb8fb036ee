"""Line search for the strength of an attack against the server's rule."""

from collections.abc import Callable

import torch
from torch import Tensor

from flwr_byzasync.aggregators.rule import aggregate_float64
from flwr_byzasync.attacks.attack import Knowledge
from flwr_byzasync.attacks.vector_statistics import Rows, first_largest
from flwr_byzasync.errors import ConfigError

LOWEST, HIGHEST = 2.0**-6, 2.0**6
"""Range of strengths."""
COARSE = 25
"""Strengths of the first grid, a factor √2 apart."""
FINE = 9
"""Strengths per refinement, between the neighbours of the best so far."""
REFINEMENTS = 3
"""Each divides the spacing by 4 in the exponent: the last strengths are 0.6 % apart."""


def strongest(
    crafted: Callable[[float], Tensor], rows: Rows, mean: Tensor, knowledge: Knowledge
) -> float:
    """Return the strength that moves the server's result farthest from the honest mean.

    Maximises ``‖A([honest rows; crafted], [weights; S_B]) − μ‖`` over strengths in
    [2⁻⁶, 2⁶]: a geometric grid, then three finer ones around its best.

    Parameters
    ----------
    crafted : callable
        Strength -> (d,) vector as it would be sent.
    rows : Rows
        Honest vectors.
    mean : Tensor
        (d,) float64, their weighted mean.
    knowledge : Knowledge
        Provides the rule, the weights and S_B. All Byzantine weight is placed in one row, which
        is equivalent to nodes that send the same vector, unless the rule ignores weights.

    Returns
    -------
    float
        The smallest of the strengths that are equally strong within 1e-9: the least conspicuous.

    Raises
    ------
    ConfigError
        If the rule or S_B is unknown.

    Cost
    ----
    52 calls of the rule. Peaks narrower than the grid can be missed.
    """
    if knowledge.rule is None or knowledge.byzantine_weight is None:
        raise ConfigError(
            "knowledge",
            "one without the server's rule or the Byzantine weight",
            'complete for a strength of "optimised"',
            "attack through OmniscientGrid, or pass a fixed number",
        )
    grid = _geometric(LOWEST, HIGHEST, COARSE)
    for _ in range(REFINEMENTS):
        best = _best(grid, crafted, rows, mean, knowledge)
        grid = _geometric(grid[max(0, best - 1)], grid[min(best + 1, len(grid) - 1)], FINE)
    return grid[_best(grid, crafted, rows, mean, knowledge)]


def _best(
    grid: list[float],
    crafted: Callable[[float], Tensor],
    rows: Rows,
    mean: Tensor,
    knowledge: Knowledge,
) -> int:
    moved = [_moved(crafted(strength), rows, mean, knowledge) for strength in grid]
    return int(first_largest(torch.stack(moved)))


def _moved(vector: Tensor, rows: Rows, mean: Tensor, knowledge: Knowledge) -> Tensor:
    vectors = rows.vectors
    lie = vector.to(vectors.device, torch.promote_types(vectors.dtype, vector.dtype))
    table = torch.cat([vectors.to(lie.dtype), lie.unsqueeze(0)])
    weights = _weights(rows, knowledge)
    result = aggregate_float64(knowledge.rule, table, weights)  # type: ignore[arg-type]
    distance: Tensor = torch.linalg.vector_norm(result - mean)
    return distance


def _weights(rows: Rows, knowledge: Knowledge) -> Tensor:
    n, device = rows.vectors.shape[0], rows.vectors.device
    honest = knowledge.weights
    if honest is None:
        honest = torch.ones(n, dtype=torch.int64)
    lying = torch.tensor([knowledge.byzantine_weight], dtype=honest.dtype)
    return torch.cat([honest.to(device), lying.to(device)])


def _geometric(low: float, high: float, count: int) -> list[float]:
    """Return `count` numbers from low to high, both ends exact."""
    inner = [low * (high / low) ** (k / (count - 1)) for k in range(1, count - 1)]
    return [low, *inner, high]
