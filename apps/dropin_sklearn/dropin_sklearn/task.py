"""Model, data, training and evaluation on one node: plain scikit-learn, no Flower, no torch."""

import warnings
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

HELD_OUT = 360
"""Images held out for the server's evaluation."""
CLASSES, PIXELS = np.arange(10), 64
Floats = NDArray[np.float64]
Data = tuple[Floats, NDArray[np.int64]]


@lru_cache
def digits() -> Data:
    """Return all images, as rows of 64 pixels, in one fixed random order."""
    raw = load_digits()
    order = np.random.default_rng(0).permutation(len(raw.data))
    return raw.data[order] / 16.0, raw.target[order]


def held_out() -> Data:
    """Return the server's held-out images."""
    images, labels = digits()
    return images[:HELD_OUT], labels[:HELD_OUT]


def partition(partition_id: int, num_partitions: int) -> tuple[Data, Data]:
    """Return one node's images: four fifths for training, one fifth for evaluation."""
    images, labels = (part[HELD_OUT:][partition_id::num_partitions] for part in digits())
    cut = len(images) * 4 // 5
    return (images[:cut], labels[:cut]), (images[cut:], labels[cut:])


def initial() -> list[Floats]:
    """Return the initial arrays: coefficients and intercepts."""
    return [np.zeros((len(CLASSES), PIXELS)), np.zeros(len(CLASSES))]


def model_of(arrays: list[Floats], **settings: Any) -> LogisticRegression:
    """Return a model with these arrays."""
    model = LogisticRegression(warm_start=True, **settings)
    model.classes_ = CLASSES
    model.coef_, model.intercept_ = arrays
    return model


def train(arrays: list[Floats], data: Data, epochs: int, regularisation: float) -> list[Floats]:
    """Return the arrays after a few more iterations."""
    model = model_of(arrays, max_iter=epochs, C=regularisation)
    with warnings.catch_warnings():
        # A few iterations are not meant to converge.
        warnings.simplefilter("ignore")
        model.fit(*data)
    return [model.coef_, model.intercept_]


def evaluate(arrays: list[Floats], data: Data) -> tuple[float, float]:
    """Return mean loss and accuracy."""
    images, labels = data
    shares = model_of(arrays).predict_proba(images)
    loss = -np.log(np.maximum(shares[np.arange(len(labels)), labels], 1e-12)).mean()
    return float(loss), float((shares.argmax(axis=1) == labels).mean())
