"""Names of records and keys in messages."""

from dataclasses import dataclass

MODEL, GRADIENT, MOMENTUM = "model", "gradient", "momentum"
"""Kinds of replies, as ``byz.payload`` names them; a message without that key holds a model."""
VECTORS = (GRADIENT, MOMENTUM)

BUFFERS = "buffers"
PREVIOUS = "arrays-prev"
"""In a query the point of the node's previous query, in a reply the gradient there."""
METRICS = "metrics"
QUERY = "byz.query"
COUNT = "byz.count"
PAYLOAD = "byz.payload"
ROUND = "server-round"


@dataclass(frozen=True)
class MessageFormat:
    """What messages look like.

    Parameters
    ----------
    payload : str
        Kind of reply; sent with each query, except to clients that know only FedAvg.
    arrayrecord_key, configrecord_key : str
        Names of the records.
    """

    payload: str = MOMENTUM
    arrayrecord_key: str = "arrays"
    configrecord_key: str = "config"
