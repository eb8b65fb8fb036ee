"""Interface for incremental rules: one reply changes one row, so the result can be updated."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from flwr_byzasync.aggregators.rule import Aggregator

S = TypeVar("S")


@dataclass(frozen=True)
class TableView:
    """Read-only view of the table: finite rows, and the accepted replies of each node.

    Parameters
    ----------
    rows : Tensor
        (m, d) latest vectors in the order in which nodes first replied, all finite; not to be
        written, and overwritten by the next reply.
    weights : Tensor
        (m,) int64 >= 1 on the host whenever an incremental rule is used: the server counts them
        itself, so that a rule can read them without a device synchronisation. Weights of any
        policy other than counts go to the rule's call.
    """

    rows: Tensor
    weights: Tensor

    def weights_beside_rows(self) -> Tensor:
        """Return the weights on the rows' device, without a synchronisation."""
        return self.weights.to(self.rows.device, non_blocking=True)


@dataclass(frozen=True)
class Change:
    """The change that one reply makes, built before the table is written.

    Parameters
    ----------
    index : tuple of int
        Rows that change, in ``0 .. m``; m itself where the node joins.
    old_rows, new_rows : Tensor or None
        (len(index), d) before and after; None before if the node joins, None after if it leaves.
    old_weights, new_weights : Tensor
        All weights before and after, as in `TableView`; (m,), longer by a node that joins and
        shorter by one that leaves. Weights of rows outside `index` may change too.
    """

    index: tuple[int, ...]
    old_rows: Tensor | None
    new_rows: Tensor | None
    old_weights: Tensor
    new_weights: Tensor


class Incremental(Protocol[S]):
    """Incremental form of a rule; the rule's own call remains the reference.

    The state belongs to the table: `update` may write it in place and return the same object. It
    is derived and never saved; a resumed run rebuilds it with `start`.
    """

    def start(self, view: TableView) -> S:
        """Return the state for the current table."""
        ...

    def update(self, state: S, change: Change, view: TableView) -> S | None:
        """Return the state after a change; `view` is the table before it.

        None if rebuilding is simpler or faster: the table then calls `start` before its next
        direction, so a rule may leave any change it does not handle to `start`.
        """
        ...

    def direction(self, state: S, view: TableView) -> Tensor:
        """Return the result of the call on `view`, before it is rounded to the rows' dtype.

        A new (d,) tensor that agrees with the call to rounding, in float64 if the rule can:
        meta-rules measure distances to it.
        """
        ...


def incremental_of(rule: Aggregator) -> Incremental[Any] | None:
    """Return the incremental form of a rule, or None if it must be called from scratch.

    A rule provides it by a method ``incremental()``, so that a composition can return None where
    its base does.
    """
    make = getattr(rule, "incremental", None)
    return make() if callable(make) else None
