"""Worst-case search for aggregation rules, and the robustness inequality; see docs/audit.md."""

from flwr_byzasync.audit.case import Case, exact_ratio, plain
from flwr_byzasync.audit.search import worst_case

__all__ = ["Case", "exact_ratio", "plain", "worst_case"]
