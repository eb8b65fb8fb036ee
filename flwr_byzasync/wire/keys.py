"""Names of records and keys in messages."""

from dataclasses import dataclass

GRADIENT, MOMENTUM = "gradient", "momentum"
"""What replies say they are."""

VECTORS = ("gradient", "momentum")
MODEL = "model"

BUFFERS = "buffers"
PREVIOUS = "arrays-prev"
"""The point of a node's last query, and the gradient there."""
METRICS = "metrics"
QUERY = "byz.query"
COUNT = "byz.count"
PAYLOAD = "byz.payload"
ROUND = "server-round"


@dataclass(frozen=True)
class MessageFormat:
    """How messages look.

    Parameters
    ----------
    payload : str
        What a reply is; told with each query, except to clients who know nothing of us.
    arrayrecord_key, configrecord_key : str
        Names of the records.
    """

    payload: str = "momentum"
    arrayrecord_key: str = "arrays"
    configrecord_key: str = "config"
