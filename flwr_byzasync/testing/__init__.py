"""Conformance tests for aggregation rules, your own included; see docs/testing.md."""

try:
    import hypothesis  # noqa: F401 - for a one-sentence error
except ImportError as error:
    raise ImportError(
        'flwr_byzasync.testing needs hypothesis: run pip install "flwr-byzasync[testing]".'
    ) from error

from flwr_byzasync.aggregators.rule import Law
from flwr_byzasync.audit.inequality import admissible, ratio
from flwr_byzasync.testing.adversarial_cases import adversarial_rows, shares
from flwr_byzasync.testing.cases import Weighted, weighted_rows
from flwr_byzasync.testing.claim import LawError
from flwr_byzasync.testing.conformance import check_aggregator

__all__ = [
    "Law",
    "LawError",
    "Weighted",
    "admissible",
    "adversarial_rows",
    "check_aggregator",
    "ratio",
    "shares",
    "weighted_rows",
]
