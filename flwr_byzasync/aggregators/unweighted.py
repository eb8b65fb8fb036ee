"""Unweighted form of any rule: weight 1 for every node that has replied."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from flwr_byzasync.aggregators.incremental import Change, Incremental, TableView, incremental_of
from flwr_byzasync.aggregators.rule import (
    Aggregator,
    Law,
    MetaRule,
    RuleInfo,
    aggregate_float64,
)


@dataclass(frozen=True)
class Unweighted(MetaRule):
    """A rule called with weight 1 for every row of positive weight: the paper's comparison.

    Its bound would hold for numbers of nodes, not for shares of the weight, so none is declared.
    """

    base: Aggregator

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="unweighted",
        laws=frozenset(Law) - {Law.COPIES},
        bound=None,
        sources=("Dahan and Levy 2024, section 5: the unweighted baseline",),
    )

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the base's result with all positive weights set to 1."""
        return aggregate_float64(self.base, rows, _ones(weights))

    def incremental(self) -> "IncrementalUnweighted | None":
        """Return the incremental form, if the base has one."""
        base = incremental_of(self.base)
        return None if base is None else IncrementalUnweighted(base)


@dataclass(frozen=True)
class IncrementalUnweighted:
    """Incremental form on a table with weights 1; its state is the base's."""

    base: Incremental[Any]

    def start(self, view: TableView) -> object:
        """Return the base's state."""
        return self.base.start(_with_ones(view))

    def update(self, state: object, change: Change, view: TableView) -> object | None:
        """Return the base's state after a change."""
        before, after = _ones(change.old_weights), _ones(change.new_weights)
        ones = replace(change, old_weights=before, new_weights=after)
        return self.base.update(state, ones, _with_ones(view))

    def direction(self, state: object, view: TableView) -> Tensor:
        """Return the base's direction."""
        return self.base.direction(state, _with_ones(view))


def _ones(weights: Tensor) -> Tensor:
    return (weights > 0).to(weights.dtype)


def _with_ones(view: TableView) -> TableView:
    return replace(view, weights=_ones(view.weights))
