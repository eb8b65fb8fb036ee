"""Metrics that nodes report, and their median."""

from collections.abc import Mapping, Sequence

import torch

from flwr_byzasync.aggregators import CoordinateWiseMedian

Metrics = Mapping[str, float | tuple[float, ...]]
"""What a node reported: finite numbers, alone or in a row."""


def median_metrics(heard: Sequence[tuple[Metrics, float]]) -> dict[str, float | list[float]]:
    """Return the weighted median of each metric that most of the weight reported.

    Parameters
    ----------
    heard : sequence of (mapping, float)
        What each node reported, and its weight. Of a metric that is a list, the median of each
        of its numbers, over the lists of the length that most of the weight has.
    """
    total = sum(weight for _, weight in heard)
    result: dict[str, float | list[float]] = {}
    for name in sorted({name for metrics, _ in heard for name in metrics}):
        told: dict[int, list[tuple[tuple[float, ...], float]]] = {}
        for metrics, weight in heard:
            value = metrics.get(name)
            if isinstance(value, tuple):
                told.setdefault(len(value), []).append((value, weight))
            elif value is not None:
                told.setdefault(-1, []).append(((value,), weight))
        for length, group in told.items():
            if 2 * sum(weight for _, weight in group) > total:
                values = torch.tensor([value for value, _ in group], dtype=torch.float64)
                weights = torch.tensor([weight for _, weight in group])
                median = CoordinateWiseMedian()(values, weights).tolist()
                result[name] = median[0] if length == -1 else median
    return result
