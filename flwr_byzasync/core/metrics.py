"""Metrics that nodes report, and their weighted median."""

from collections.abc import Mapping, Sequence

import torch

from flwr_byzasync.aggregators import CoordinateWiseMedian

Metrics = Mapping[str, float | tuple[float, ...]]
"""What a node reported: finite numbers, single ones or lists."""


def median_metrics(reports: Sequence[tuple[Metrics, float]]) -> dict[str, float | list[float]]:
    """Return the weighted median of each metric that a majority of the weight reported.

    Parameters
    ----------
    reports : sequence of (mapping, float)
        What each node reported, and its weight. A metric that is a list gets the median of each
        of its numbers, over the lists of the length that most of the weight has.
    """
    total = sum(weight for _, weight in reports)
    result: dict[str, float | list[float]] = {}
    for name in sorted({name for metrics, _ in reports for name in metrics}):
        by_length: dict[int, list[tuple[tuple[float, ...], float]]] = {}
        for metrics, weight in reports:
            value = metrics.get(name)
            if isinstance(value, tuple):
                by_length.setdefault(len(value), []).append((value, weight))
            elif value is not None:
                by_length.setdefault(-1, []).append(((value,), weight))
        for length, group in by_length.items():
            if 2 * sum(weight for _, weight in group) > total:
                values = torch.tensor([value for value, _ in group], dtype=torch.float64)
                weights = torch.tensor([weight for _, weight in group])
                median = CoordinateWiseMedian()(values, weights).tolist()
                result[name] = median[0] if length == -1 else median
    return result
