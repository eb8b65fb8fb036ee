"""Metrics of several nodes as one MetricRecord."""

from collections.abc import Callable, Sequence
from logging import getLogger

from flwr.app import MetricRecord, RecordDict

from flwr_byzasync._printable import printable
from flwr_byzasync.core.metrics import Metrics, median_metrics
from flwr_byzasync.wire.keys import METRICS

logger = getLogger("flwr")

NUM_EXAMPLES = "num-examples"
"""Flower weights metrics by it. It is a client's claim, so nothing here does."""
MetricsFn = Callable[[list[RecordDict], str], MetricRecord]


def aggregate_metrics(
    reports: Sequence[tuple[Metrics, float]], function: MetricsFn | None
) -> MetricRecord | None:
    """Return the metrics of several nodes as one record.

    Parameters
    ----------
    reports : sequence of (mapping, float)
        Finite numbers that each node reported, and its weight.
    function : callable or None
        As in Flower's strategies, ``(records, "num-examples") -> MetricRecord``; None for the
        weighted median, which a minority of the weight cannot move beyond the others' values.

    Returns
    -------
    MetricRecord or None
        None if nothing was reported, or the function raised or returned something else, which
        is logged.
    """
    reports = [(metrics, weight) for metrics, weight in reports if metrics or function is None]
    if not reports:
        return None
    if function is None:
        medians = median_metrics(reports)
        medians.pop(NUM_EXAMPLES, None)
        return MetricRecord(dict(medians)) if medians else None
    contents = [RecordDict({METRICS: _record(metrics)}) for metrics, _ in reports]
    try:
        metrics = function(contents, NUM_EXAMPLES)
    except Exception as error:
        # A metric that one node leaves out may break the function: that must not end a run.
        logger.warning("The function that aggregates metrics raised %s.", printable(error))
        return None
    if not isinstance(metrics, MetricRecord):
        kind = type(metrics).__name__
        logger.warning("The function that aggregates metrics returned %s, no MetricRecord.", kind)
        return None
    return metrics


def mean_metrics(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Return the mean of each metric over the nodes that report it, each node counting once.

    For `train_metrics_aggr_fn` or `evaluate_metrics_aggr_fn`. One Byzantine node moves it
    anywhere.
    """
    del weighted_by_key
    reported: dict[str, list[float]] = {}
    for content in contents:
        for name, value in content.metric_records[METRICS].items():
            if not isinstance(value, list):
                reported.setdefault(name, []).append(float(value))
    return MetricRecord({name: sum(values) / len(values) for name, values in reported.items()})


def _record(metrics: Metrics) -> MetricRecord:
    return MetricRecord({k: list(v) if isinstance(v, tuple) else v for k, v in metrics.items()})
