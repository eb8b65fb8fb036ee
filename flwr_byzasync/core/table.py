"""The latest vector, count and weight of every node: the one mutable buffer of the run.

A reply replaces one row in place, because copying m rows for each reply would cost m·d. Rules
read the table through a `TableView` and never write to it. The table also computes the direction:
from scratch by calling the rule, or from the state of an incremental rule. That state is written
in place too, for the same reason: it follows from rows and weights, and nobody else holds it.
"""

from collections.abc import Sequence
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
from flwr_byzasync.aggregators.rule import Law, laws_of
from flwr_byzasync.weights import Counts, WeightPolicy

S = TypeVar("S")


class Table(Generic[S]):
    """Latest vectors, their counts and weights, and the rule that aggregates them.

    Parameters
    ----------
    aggregator : Aggregator
        The rule; updated incrementally if `incremental_of` it is not None.
    size : int
        d.
    dtype, device
        Of the rows.
    weigh : WeightPolicy
        What a row weighs, by its count and age. Rules are updated incrementally while weights
        are positive integers, and called from scratch otherwise: counts in floats are inexact.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
        weigh: WeightPolicy | None = None,
    ) -> None:
        self._aggregator = aggregator
        self._moves_with_rows = Law.TRANSLATION in laws_of(aggregator)
        self._incremental: Incremental[S] | None = incremental_of(aggregator)
        self._weigh = Counts() if weigh is None else weigh
        self._rows = torch.empty(0, size, dtype=dtype, device=device)
        self._counts: tuple[int, ...] = ()
        self._sent: tuple[int, ...] = ()
        self._weights = torch.empty(0, dtype=torch.int64)
        self._step = 0
        self._derived: S | None = None

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def counts(self) -> tuple[int, ...]:
        """Accepted replies of each row's node."""
        return self._counts

    @property
    def sent(self) -> tuple[int, ...]:
        """Server steps before the query of each row was sent."""
        return self._sent

    @property
    def step(self) -> int:
        """Server steps when the weights were last taken."""
        return self._step

    def view(self) -> TableView:
        """Return the rows in use and their weights, without a copy of the rows."""
        return TableView(self._rows[: len(self)], self._weights)

    def replace(
        self, index: int, vector: Tensor, count: int | None = None, sent: int = 0, step: int = 0
    ) -> None:
        """Write a node's latest vector, and count its reply.

        Parameters
        ----------
        index : int
            Row in ``0 .. m``; m appends the row of a node that replies for the first time, or
            again after its row was dropped.
        vector : Tensor
            (d,) finite, of the table's dtype and device.
        count : int, optional
            The node's accepted replies, this one included. None: one more than before.
        sent, step : int
            Server steps before its query was sent, and so far: their difference is its age.
        """
        joins = index == len(self)
        known = 0 if joins else self._counts[index]
        counts = _with(self._counts, index, known + 1 if count is None else count)
        sent_at = _with(self._sent, index, sent)
        weights = self._weighed(counts, sent_at, step)
        old = None if joins else self._rows[index : index + 1]
        self._update(Change((index,), old, vector.unsqueeze(0), self._weights, weights))
        if joins:
            self._reserve(index + 1)
        self._counts, self._sent, self._weights = counts, sent_at, weights
        self._rows[index].copy_(vector)

    def drop(self, index: int, step: int = 0) -> None:
        """Drop a row; those after it move up by one.

        Parameters
        ----------
        index : int
            Row in ``0 .. m − 1``.
        step : int
            Server steps so far.
        """
        counts = self._counts[:index] + self._counts[index + 1 :]
        sent_at = self._sent[:index] + self._sent[index + 1 :]
        weights = self._weighed(counts, sent_at, step)
        gone = self._rows[index : index + 1]
        self._update(Change((index,), gone, None, self._weights, weights))
        self._rows[index : len(counts)] = self._rows[index + 1 : len(counts) + 1].clone()
        self._counts, self._sent, self._weights = counts, sent_at, weights

    def shift(self, offset: Tensor) -> None:
        """Add a (d,) vector to every row."""
        self._derived = None
        self._rows[: len(self)] += offset

    def fill(self, rows: Tensor, counts: Sequence[int], sent: Sequence[int], step: int) -> None:
        """Replace the content by that of another table, when a run resumes.

        Parameters
        ----------
        rows : Tensor
            (m, d); copied.
        counts, sent : sequence of int
            As the properties of the same names.
        step : int
            As the property of that name.
        """
        self._derived = None
        self._counts, self._sent = tuple(counts), tuple(sent)
        self._weights = self._weighed(self._counts, self._sent, step)
        self._rows = rows.to(self._rows.device, self._rows.dtype, copy=True)

    def direction(self, offset: Tensor | None = None) -> Tensor:
        """Return the aggregate of all rows with the weights that the policy gives them.

        Parameters
        ----------
        offset : Tensor, optional
            (d,) added to every row first; to the result instead where the rule's laws say that
            this is the same. Elsewhere it costs a copy of all rows.

        Returns
        -------
        Tensor
            (d,) new, of the rows' dtype and device.
        """
        view = self.view()
        if offset is not None:
            if self._moves_with_rows:
                return self.direction() + offset
            return self._aggregator(view.rows + offset, view.weights_beside_rows())
        if self._incremental is None or not _are_counts(view.weights):
            return self._aggregator(view.rows, view.weights_beside_rows())
        if self._derived is None:
            self._derived = self._incremental.start(view)
        return self._incremental.direction(self._derived, view).to(view.rows.dtype)

    def _weighed(self, counts: Sequence[int], sent: Sequence[int], step: int) -> Tensor:
        if not counts:
            return torch.empty(0, dtype=torch.int64)
        self._step = step
        ages = step - torch.tensor(sent, dtype=torch.int64)
        return self._weigh(torch.tensor(counts, dtype=torch.int64), ages)

    def _update(self, change: Change) -> None:
        """Update the state of an incremental rule, if it has one, before the rows change."""
        # Dropped first: an update that raises may leave it half written.
        derived, self._derived = self._derived, None
        if self._incremental is None or derived is None or not _are_counts(change.new_weights):
            return
        self._derived = self._incremental.update(derived, change, self.view())

    def _reserve(self, count: int) -> None:
        """Grow by doubling, so that m nodes that join cost 2 m row copies, not m²/2."""
        if count > self._rows.shape[0]:
            grown = self._rows.new_empty(max(4, 2 * self._rows.shape[0]), self._rows.shape[1])
            grown[: len(self)] = self._rows[: len(self)]
            self._rows = grown


def _with(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _are_counts(weights: Tensor) -> bool:
    """Whether weights are what `TableView` promises to rules that are kept up to date."""
    whole = not weights.is_floating_point() and len(weights) > 0
    return whole and int(weights.min()) > 0
