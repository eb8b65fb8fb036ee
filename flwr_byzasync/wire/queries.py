"""Queries, and the whole model, as Flower records."""

from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from flwr_byzasync.core.layout import ModelLayout
from flwr_byzasync.wire.arrays import record_of
from flwr_byzasync.wire.keys import BUFFERS, MODEL, PREVIOUS, MessageFormat


def encode_query(
    layout: ModelLayout,
    point: Tensor,
    buffers: Tensor,
    counters: Tensor,
    config: Mapping[str, object],
    message_format: MessageFormat,
    previous: Tensor | None = None,
) -> RecordDict:
    """Return the content of a query.

    Parameters
    ----------
    layout : ModelLayout
        Names and shapes.
    point, buffers, counters : Tensor
        Flat (d,) vectors of the three groups.
    config : mapping
        The user's train config and our own keys; copied, so that no two messages share it.
    message_format : MessageFormat
        Names of the records. Where replies are models, the query is one record too.
    previous : Tensor or None
        (d,) the point of the node's previous query, where a gradient there is requested too.
    """
    key = message_format.arrayrecord_key
    if message_format.payload == MODEL:
        content = RecordDict({key: model_record(layout, point, buffers, counters)})
    else:
        content = RecordDict({key: record_of(layout.parameters.unflatten(point))})
        if layout.buffers.entries or layout.counters.entries:
            content[BUFFERS] = record_of(_others(layout, buffers, counters))
    if previous is not None:
        content[PREVIOUS] = record_of(layout.parameters.unflatten(previous))
    content[message_format.configrecord_key] = ConfigRecord(dict(config))  # type: ignore[arg-type]
    return content


def model_record(
    layout: ModelLayout, point: Tensor, buffers: Tensor, counters: Tensor
) -> ArrayRecord:
    """Return the whole model in the user's order."""
    parameters = layout.parameters.unflatten(point)
    return record_of(layout.merge(parameters, _others(layout, buffers, counters)))


def _others(layout: ModelLayout, buffers: Tensor, counters: Tensor) -> dict[str, Tensor]:
    return {**layout.buffers.unflatten(buffers), **layout.counters.unflatten(counters)}
