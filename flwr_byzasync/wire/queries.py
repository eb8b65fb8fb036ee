"""Queries, as Flower messages hold them."""

from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from flwr_byzasync.core.layout import ModelLayout
from flwr_byzasync.wire.arrays import record_of
from flwr_byzasync.wire.keys import BUFFERS, PREVIOUS, MessageFormat


def encode_query(
    layout: ModelLayout,
    point: Tensor,
    buffers: Tensor,
    counters: Tensor,
    config: Mapping[str, object],
    wire: MessageFormat,
    before: Tensor | None = None,
) -> RecordDict:
    """Return the content of a query.

    Parameters
    ----------
    layout : ModelLayout
        Names and shapes.
    point, buffers, counters : Tensor
        Flat (d,) vectors of the three groups.
    config : mapping
        The user's train config and our own keys; copied, so that no message shares it.
    wire : Wire
        How messages look. Where replies are models so are queries, in one record.
    before : Tensor or None
        (d,) the point of the node's last query, where it is to answer there too.
    """
    if wire.payload == "model":
        content = RecordDict({wire.arrayrecord_key: model_record(layout, point, buffers, counters)})
    else:
        parameters = layout.parameters.unflatten(point)
        content = RecordDict({wire.arrayrecord_key: record_of(parameters)})
        if layout.buffers.entries or layout.counters.entries:
            content[BUFFERS] = record_of(_others(layout, buffers, counters))
    if before is not None:
        content[PREVIOUS] = record_of(layout.parameters.unflatten(before))
    content[wire.configrecord_key] = ConfigRecord(dict(config))  # type: ignore[arg-type]
    return content


def model_record(
    layout: ModelLayout, point: Tensor, buffers: Tensor, counters: Tensor
) -> ArrayRecord:
    """Return the whole model in the order in which the user gave it."""
    parameters = layout.parameters.unflatten(point)
    return record_of(layout.merge(parameters, _others(layout, buffers, counters)))


def _others(layout: ModelLayout, buffers: Tensor, counters: Tensor) -> dict[str, Tensor]:
    return {**layout.buffers.unflatten(buffers), **layout.counters.unflatten(counters)}
