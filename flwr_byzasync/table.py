"""The latest vector and count of every node: the one mutable buffer of the run.

A reply replaces one row in place, because copying m rows for each reply would cost m·d. Rules
see the table through a `TableView` and never write to it. The table also knows how to get the
direction: from scratch by calling the rule, or from what an incremental rule keeps up to date.
That state is written in place too, for the same reason: it says nothing that the rows and counts
do not say, and nobody else holds it.
"""

from typing import Generic, TypeVar

import torch
from torch import Tensor

from flwr_byzasync.aggregators import Aggregator
from flwr_byzasync.aggregators.incremental import (
    Change,
    Incremental,
    TableView,
    incremental_of,
)

S = TypeVar("S")


class Table(Generic[S]):
    """Latest vectors, counts and the rule that turns them into a direction.

    Parameters
    ----------
    aggregator : Aggregator
        The rule; kept up to date if `incremental_of` it is not None, else called from scratch.
    size : int
        d.
    dtype, device
        Of the rows.
    """

    def __init__(
        self, aggregator: Aggregator, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._aggregator = aggregator
        self._incremental: Incremental[S] | None = incremental_of(aggregator)
        self._rows = torch.empty(0, size, dtype=dtype, device=device)
        self._counts: list[int] = []
        self._derived: S | None = None

    def __len__(self) -> int:
        return len(self._counts)

    def view(self) -> TableView:
        """Return the rows in use and their weights, without a copy of the rows."""
        return TableView(self._rows[: len(self)], _weights(self._counts))

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
        counts = [*self._counts, 0] if joins else list(self._counts)
        counts[index] += 1
        self._update(index, vector, counts)
        if joins:
            self._reserve(index + 1)
        self._counts = counts
        self._rows[index].copy_(vector)

    def direction(self) -> Tensor:
        """Return the aggregate of all rows, weighted by the counts.

        Returns
        -------
        Tensor
            (d,) new, of the rows' dtype and device.
        """
        view = self.view()
        if self._incremental is None:
            return self._aggregator(view.rows, view.weights_beside_rows())
        if self._derived is None:
            self._derived = self._incremental.start(view)
        return self._incremental.direction(self._derived, view).to(view.rows.dtype)

    def _update(self, index: int, vector: Tensor, counts: list[int]) -> None:
        """Tell an incremental rule what is about to change, once it has begun."""
        if self._incremental is None or self._derived is None:
            return
        old = None if index == len(self) else self._rows[index : index + 1]
        before, after = _weights(self._counts), _weights(counts)
        change = Change((index,), old, vector.unsqueeze(0), before, after)
        # Forgotten first: an update that raises may leave it half written.
        derived, self._derived = self._derived, None
        self._derived = self._incremental.update(derived, change, self.view())

    def _reserve(self, count: int) -> None:
        """Grow by doubling, so that m nodes that join cost 2 m row copies, not m²/2."""
        if count > self._rows.shape[0]:
            grown = self._rows.new_empty(max(4, 2 * self._rows.shape[0]), self._rows.shape[1])
            grown[: len(self)] = self._rows[: len(self)]
            self._rows = grown


def _weights(counts: list[int]) -> Tensor:
    return torch.tensor(counts, dtype=torch.int64)
