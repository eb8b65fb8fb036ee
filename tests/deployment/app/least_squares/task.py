"""Least squares: a known solution, noisy labels, one batch for each (partition, count)."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float64]]

SOLUTION: Arrays = {"weight": np.linspace(-1.0, 1.0, 8), "bias": np.array([0.5])}
BATCH, NOISE = 64, 0.1


def start() -> Arrays:
    """Return the initial model."""
    return {name: np.zeros_like(value) for name, value in SOLUTION.items()}


def loss(model: Mapping[str, NDArray[np.float64]]) -> float:
    """Return half the squared distance to the solution: the expected loss without its noise."""
    return float(sum(0.5 * np.sum((model[name] - SOLUTION[name]) ** 2) for name in SOLUTION))


def gradient(model: Mapping[str, NDArray[np.float64]], partition: int, count: int) -> Arrays:
    """Return the gradient on the batch of a node's reply number `count`."""
    generator = np.random.default_rng([partition, count])
    inputs = generator.standard_normal((BATCH, SOLUTION["weight"].size))
    labels = inputs @ SOLUTION["weight"] + SOLUTION["bias"]
    labels += NOISE * generator.standard_normal(BATCH)
    errors = inputs @ model["weight"] + model["bias"] - labels
    return {"weight": inputs.T @ errors / BATCH, "bias": errors.mean(keepdims=True)}
