"""How bad a rule can get: worst cases, searched for and told. See docs/audit.md."""

from flwr_byzasync.audit.case import Case, exact_ratio, plain
from flwr_byzasync.audit.search import worst_case

__all__ = ["Case", "exact_ratio", "plain", "worst_case"]
