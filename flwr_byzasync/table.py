"""The latest vector and count of every node: the one mutable buffer of the run.

A reply replaces one row in place, because copying m rows for each reply would cost m·d. Rules
see the table through a `TableView` and never write to it. The table also knows how to get the
direction: from scratch by calling the rule, or from what the rule keeps up to date.
"""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from flwr_byzasync.aggregators import Aggregator

S = TypeVar("S")


@dataclass(frozen=True)
class TableView:
    """What a rule may read.

    Parameters
    ----------
    rows : Tensor
        (m, d) latest vectors in the order in which nodes first replied; not to be written, and
        overwritten by the next reply.
    weights : Tensor
        (m,) int64 on the rows' device: accepted replies of each node.
    """

    rows: Tensor
    weights: Tensor


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
        All weights before and after, (m,) or (m + 1,).
    """

    index: tuple[int, ...]
    old_rows: Tensor | None
    new_rows: Tensor | None
    old_weights: Tensor
    new_weights: Tensor


@runtime_checkable
class Incremental(Protocol[S]):
    """A rule that can be kept up to date, because one reply changes one row.

    Its call stays the truth: `direction` must agree with it to rounding. The state is derived
    and never saved; a resumed run makes it anew with `start`.
    """

    def __call__(self, rows: Tensor, weights: Tensor, /) -> Tensor:
        """Aggregate from scratch."""
        ...

    def start(self, view: TableView) -> S:
        """Return the state for a table as it stands."""
        ...

    def update(self, state: S, change: Change, view: TableView) -> S:
        """Return the state after a change; `view` is the table before it."""
        ...

    def direction(self, state: S, view: TableView) -> Tensor:
        """Return what the call would return on `view`."""
        ...


class Table(Generic[S]):
    """Latest vectors, counts and the rule that turns them into a direction.

    Parameters
    ----------
    aggregator : Aggregator
        The rule; if it is `Incremental` it is kept up to date, else called from scratch.
    size : int
        d.
    dtype, device
        Of the rows.
    """

    def __init__(
        self, aggregator: Aggregator, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._aggregator = aggregator
        self._rows = torch.empty(0, size, dtype=dtype, device=device)
        self._counts: list[int] = []
        self._derived: S | None = None

    def __len__(self) -> int:
        return len(self._counts)

    def view(self) -> TableView:
        """Return the rows in use and their weights, without a copy of the rows."""
        return TableView(self._rows[: len(self)], self._weights(self._counts))

    def replace(self, index: int, vector: Tensor) -> None:
        """Write a node's latest vector and count one more reply of it.

        Parameters
        ----------
        index : int
            Row in ``0 .. m``; m appends the row of a node that replies for the first time.
        vector : Tensor
            (d,) validated: finite, of the table's dtype and device.
        """
        joins = index == len(self)
        if self._derived is not None:
            rule = cast(Incremental[S], self._aggregator)
            counts = [*self._counts, 1] if joins else list(self._counts)
            counts[index] += 0 if joins else 1
            old = None if joins else self._rows[index : index + 1]
            before, after = self._weights(self._counts), self._weights(counts)
            change = Change((index,), old, vector.unsqueeze(0), before, after)
            self._derived = rule.update(self._derived, change, self.view())
        if joins:
            self._reserve(index + 1)
            self._counts.append(0)
        self._rows[index].copy_(vector)
        self._counts[index] += 1

    def direction(self) -> Tensor:
        """Return the aggregate of all rows, weighted by the counts.

        Returns
        -------
        Tensor
            (d,) new, of the rows' dtype and device.
        """
        view = self.view()
        if not isinstance(self._aggregator, Incremental):
            return self._aggregator(view.rows, view.weights)
        rule = cast(Incremental[S], self._aggregator)
        if self._derived is None:
            self._derived = rule.start(view)
        return rule.direction(self._derived, view)

    def _reserve(self, count: int) -> None:
        """Grow by doubling, so that m nodes that join cost 2 m row copies, not m²/2."""
        if count > self._rows.shape[0]:
            grown = self._rows.new_empty(max(4, 2 * self._rows.shape[0]), self._rows.shape[1])
            grown[: len(self)] = self._rows[: len(self)]
            self._rows = grown

    def _weights(self, counts: list[int]) -> Tensor:
        return torch.tensor(counts, dtype=torch.int64, device=self._rows.device)
