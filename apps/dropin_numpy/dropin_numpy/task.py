"""Model, data, training and evaluation on one node: plain NumPy, no Flower, no torch."""

import numpy as np
from numpy.typing import NDArray

CLASSES, FEATURES, EXAMPLES, HELD_OUT = 5, 20, 100, 1000
Floats = NDArray[np.float64]
Data = tuple[Floats, NDArray[np.int64]]


def points(count: int, seed: int) -> Data:
    """Return points of overlapping Gaussian clouds, one per class."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, FEATURES)) * 0.7
    rng = np.random.default_rng((1, seed))
    labels = rng.integers(CLASSES, size=count)
    return centres[labels] + rng.normal(size=(count, FEATURES)), labels


def held_out() -> Data:
    """Return the server's held-out points."""
    return points(HELD_OUT, seed=0)


def partition(partition_id: int) -> tuple[Data, Data]:
    """Return one node's points: for training and for evaluation."""
    inputs, labels = points(EXAMPLES, seed=1 + partition_id)
    cut = EXAMPLES * 4 // 5
    return (inputs[:cut], labels[:cut]), (inputs[cut:], labels[cut:])


def initial(seed: int) -> list[Floats]:
    """Return the initial arrays: weights and biases."""
    weights = np.random.default_rng(seed).normal(size=(FEATURES, CLASSES)) * 0.01
    return [weights, np.zeros(CLASSES)]


def probabilities(arrays: list[Floats], inputs: Floats) -> Floats:
    """Return the softmax of the model's outputs."""
    outputs = inputs @ arrays[0] + arrays[1]
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


def train(
    arrays: list[Floats], data: Data, epochs: int, lr: float
) -> tuple[list[Floats], list[float]]:
    """Return the arrays after full-batch gradient steps, and the loss before each."""
    inputs, labels = data
    weights, biases = (array.copy() for array in arrays)
    losses = []
    for _ in range(epochs):
        losses.append(evaluate([weights, biases], data)[0])
        slope = (probabilities([weights, biases], inputs) - np.eye(CLASSES)[labels]) / len(labels)
        weights -= lr * inputs.T @ slope
        biases -= lr * slope.sum(axis=0)
    return [weights, biases], losses


def evaluate(arrays: list[Floats], data: Data) -> tuple[float, float]:
    """Return mean loss and accuracy."""
    inputs, labels = data
    shares = probabilities(arrays, inputs)
    loss = -np.log(np.maximum(shares[np.arange(len(labels)), labels], 1e-12)).mean()
    return float(loss), float((shares.argmax(axis=1) == labels).mean())
