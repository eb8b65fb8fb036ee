"""Metrics that nodes report, and their weighted median."""

from collections.abc import Mapping, Sequence

import torch

from flwr_byzasync.aggregators import CoordinateWiseMedian

Metrics = Mapping[str, float | tuple[float, ...]]
"""What a node reported: finite numbers, single ones or lists."""
Group = list[tuple[tuple[float, ...], float]]
"""What nodes reported under one name and of one length, with their weights."""
SINGLE = -1
"""Stands for the length of a metric that is a single number."""


def median_metrics(reports: Sequence[tuple[Metrics, float]]) -> dict[str, float | list[float]]:
    """Return the weighted median of each metric that a majority of the weight reported.

    Parameters
    ----------
    reports : sequence of (mapping, float)
        What each node reported, and its weight. A metric that is a list gets the median of each
        of its numbers, over the lists of the length that most of the weight has.

    Notes
    -----
    The cost is linear in what was reported, however many different names there are.
    """
    total = sum(weight for _, weight in reports)
    groups: dict[tuple[str, int], Group] = {}
    for metrics, weight in reports:
        for name, value in metrics.items():
            length = len(value) if isinstance(value, tuple) else SINGLE
            values = value if isinstance(value, tuple) else (value,)
            groups.setdefault((name, length), []).append((values, weight))
    major = [key for key, group in groups.items() if 2 * sum(w for _, w in group) > total]
    result: dict[str, float | list[float]] = {}
    for name, length in sorted(major, key=lambda key: key[0]):
        median = _median(groups[name, length])
        result[name] = median[0] if length == SINGLE else median
    return result


def _median(group: Group) -> list[float]:
    values = torch.tensor([value for value, _ in group], dtype=torch.float64)
    weights = torch.tensor([weight for _, weight in group])
    return list(CoordinateWiseMedian()(values, weights).tolist())
