"""The seam for rules that are kept up to date, because one reply changes one row."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from flwr_byzasync.aggregators.rule import Aggregator

S = TypeVar("S")


@dataclass(frozen=True)
class TableView:
    """What a rule may read: finite rows, and how many accepted replies each node has made.

    Parameters
    ----------
    rows : Tensor
        (m, d) latest vectors in the order in which nodes first replied, all finite; not to be
        written, and overwritten by the next reply.
    weights : Tensor
        (m,) int64 >= 1 on the host wherever a rule is kept up to date: the server counts them
        itself, so that a rule may read them without waiting for the device. Other weights, of a
        policy that is not counts, go to the rule's call.
    """

    rows: Tensor
    weights: Tensor

    def weights_beside_rows(self) -> Tensor:
        """Return the weights on the rows' device, without waiting for it."""
        return self.weights.to(self.rows.device, non_blocking=True)


@dataclass(frozen=True)
class Change:
    """What one reply is about to change; made before the table is written.

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
    """How a rule is kept up to date; the rule's own call stays the truth.

    The state belongs to the table: `update` may write it in place and return the same object,
    as the table itself is written in place. It is derived, so never saved; a resumed run makes
    it anew with `start`.
    """

    def start(self, view: TableView) -> S:
        """Return the state for a table as it stands."""
        ...

    def update(self, state: S, change: Change, view: TableView) -> S | None:
        """Return the state after a change; `view` is the table before it.

        None where starting again is simpler or faster: the table then calls `start` before its
        next direction. So a rule may leave any change that it does not know to `start`.
        """
        ...

    def direction(self, state: S, view: TableView) -> Tensor:
        """Return what the call would return on `view`, before it is rounded to the rows' dtype.

        A new (d,) tensor that agrees with the call to rounding, in float64 if the rule can:
        meta-rules measure distances to it.
        """
        ...


def incremental_of(rule: Aggregator) -> Incremental[Any] | None:
    """Return how a rule is kept up to date, or None if it must be called from scratch.

    A rule says so by a method ``incremental()``. It is a method, so that a composition can
    answer None where its base does.
    """
    make = getattr(rule, "incremental", None)
    return make() if callable(make) else None
