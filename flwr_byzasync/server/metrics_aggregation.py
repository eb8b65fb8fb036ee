"""Metrics of several nodes as one MetricRecord."""

from collections.abc import Callable, Sequence
from logging import getLogger

from flwr.app import MetricRecord, RecordDict

from flwr_byzasync.core.metrics import Metrics, median_metrics
from flwr_byzasync.wire.keys import METRICS

logger = getLogger("flwr")

CLAIMED = "num-examples"
"""What Flower weights metrics by, and leaves out of them. A node says it, so nothing is."""
MetricsFn = Callable[[list[RecordDict], str], MetricRecord]


def aggregate_metrics(
    heard: Sequence[tuple[Metrics, float]], function: MetricsFn | None
) -> MetricRecord | None:
    """Return the metrics of several nodes as one record.

    Parameters
    ----------
    heard : sequence of (mapping, float)
        Finite numbers that each node reported, and its weight.
    function : callable or None
        As Flower's strategies take it, ``(records, "num-examples") -> MetricRecord``; None for
        the weighted median, which fewer than half of the weight cannot move beyond the others.

    Returns
    -------
    MetricRecord or None
        None if nothing was reported, or the function raised or returned no MetricRecord, which
        is logged.
    """
    heard = [(metrics, weight) for metrics, weight in heard if metrics or function is None]
    if not heard:
        return None
    if function is None:
        medians = median_metrics(heard)
        medians.pop(CLAIMED, None)
        return MetricRecord(dict(medians)) if medians else None
    contents = [RecordDict({METRICS: _record(metrics)}) for metrics, _ in heard]
    try:
        metrics = function(contents, CLAIMED)
    except Exception as error:
        # What a node leaves out may break the function: that must not end a run.
        logger.warning("The function that aggregates metrics raised %r.", error)
        return None
    if not isinstance(metrics, MetricRecord):
        given = type(metrics).__name__
        logger.warning("The function that aggregates metrics returned %s, no MetricRecord.", given)
        return None
    return metrics


def mean_metrics(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Return the mean of each metric over the nodes that report it, each node counting once.

    To be passed as `train_metrics_aggr_fn` or `evaluate_metrics_aggr_fn`. One liar moves it
    anywhere.
    """
    del weighted_by_key
    told: dict[str, list[float]] = {}
    for content in contents:
        for name, value in content.metric_records[METRICS].items():
            if not isinstance(value, list):
                told.setdefault(name, []).append(float(value))
    return MetricRecord({name: sum(values) / len(values) for name, values in told.items()})


def _record(metrics: Metrics) -> MetricRecord:
    return MetricRecord({k: list(v) if isinstance(v, tuple) else v for k, v in metrics.items()})
