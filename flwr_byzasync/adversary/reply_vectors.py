"""A reply as one vector, whatever its payload: where attacks act."""

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType
from torch import Tensor

from flwr_byzasync.core.layout import Layout
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.wire.arrays import record_of, tensors_of
from flwr_byzasync.wire.keys import MODEL, PAYLOAD, VECTORS


@dataclass(frozen=True)
class PayloadVector:
    """A reply's floating arrays as a vector, and the way back.

    Parameters
    ----------
    arrays : mapping of str to Tensor
        Everything in the reply.
    layout : Layout
        Of its floating arrays.
    start : Tensor or None
        The point a model was trained from: its vector is the pseudo-gradient
        ``start − weights``. None if the arrays are a vector themselves.
    """

    arrays: Mapping[str, Tensor]
    layout: Layout
    start: Tensor | None

    @classmethod
    def of(
        cls, arrays: Mapping[str, Tensor], start: Mapping[str, Tensor] | None
    ) -> "PayloadVector":
        """Return a reply's arrays as a vector; `start` is `base_model_of` its query.

        Raises
        ------
        ConfigError
            If a model does not have the query's names and shapes.
        """
        layout = Layout.of({name: x for name, x in arrays.items() if x.is_floating_point()})
        if start is None:
            return cls(arrays, layout, None)
        shapes = {entry.name: entry.shape for entry in layout.entries}
        expected = {name: tuple(x.shape) for name, x in start.items() if name in shapes}
        if shapes != expected:
            fix = "have the strategy ask for another payload, or attack replies that are models"
            raise ConfigError("reply", shapes, "arrays of the query's names and shapes", fix)
        return cls(arrays, layout, layout.flatten(start))

    @property
    def vector(self) -> Tensor:
        """The reply as a (d,) vector."""
        flat = self.layout.flatten(self.arrays)
        return flat if self.start is None else self.start - flat

    def with_vector(self, vector: Tensor) -> ArrayRecord:
        """Return the reply's record with another vector; integer arrays stay."""
        flat = vector if self.start is None else self.start - vector
        return record_of({**self.arrays, **self.layout.unflatten(flat)})


def is_train_query(message: Message) -> bool:
    """Whether a message asks for training, by any train function of the ClientApp."""
    return message.metadata.message_type.split(".")[0] == MessageType.TRAIN


def base_model_of(
    query: Message, arrayrecord_key: str = "arrays", configrecord_key: str = "config"
) -> Mapping[str, Tensor] | None:
    """Return the arrays that a reply's weights were trained from; None if replies are vectors.

    The query's ``byz.payload`` says which: "momentum" and "gradient" are vectors; "model", or no
    such key, as in a deployment of FedAvg, are weights.

    Raises
    ------
    ConfigError
        If the payload is another.
    """
    config = query.content.config_records.get(configrecord_key) or ConfigRecord()
    payload = config.get(PAYLOAD, MODEL)
    if payload in VECTORS:
        return None
    if payload != MODEL:
        legal = "one of " + ", ".join((*VECTORS, MODEL))
        raise ConfigError(PAYLOAD, payload, legal, "ask for a payload that attacks know")
    return tensors_of(query.content.array_records.get(arrayrecord_key) or ArrayRecord())
