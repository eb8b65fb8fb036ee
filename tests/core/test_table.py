"""The table of latest vectors, and the seam for rules that are kept up to date."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync.aggregators import CoordinateWiseMedian, Mean
from flwr_byzasync.aggregators.incremental import Change, TableView
from flwr_byzasync.table import Table

CPU = torch.device("cpu")


@dataclass(frozen=True)
class RunningMean:
    """A weighted mean kept as a weighted sum: the smallest rule that can be kept up to date."""

    scratch: list[int] = field(default_factory=list)

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        self.scratch.append(rows.shape[0])
        return Mean()(rows, weights)

    def incremental(self) -> "RunningMean":
        return self

    def start(self, view: TableView) -> Tensor:
        return view.weights.to(view.rows.dtype) @ view.rows

    def update(self, state: Tensor, change: Change, view: TableView) -> Tensor | None:
        assert torch.equal(view.weights, change.old_weights)
        for k, index in enumerate(change.index):
            if change.old_rows is not None:
                assert torch.equal(view.rows[index], change.old_rows[k])
                state = state - change.old_weights[index] * change.old_rows[k]
            if change.new_rows is not None:
                state = state + change.new_weights[index] * change.new_rows[k]
        return state

    def direction(self, state: Tensor, view: TableView) -> Tensor:
        return state / view.weights.sum()


class FromScratch:
    """The same rule without the seam."""

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        return Mean()(rows, weights)


replies = st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=30)


def play(table: Table[object], events: list[tuple[int, int]]) -> list[Tensor]:
    """Fill a table from (node, value) pairs; a node's row is its rank among first replies."""
    rows: dict[int, int] = {}
    directions = []
    for node, value in events:
        table.replace(rows.setdefault(node, len(rows)), torch.tensor([value, -value]).double())
        directions.append(table.direction())
    return directions


@given(replies)
def test_a_rule_kept_up_to_date_gives_what_the_rule_gives_from_scratch(
    events: list[tuple[int, int]],
) -> None:
    rule = RunningMean()
    kept = play(Table(rule, 2, torch.float64, CPU), events)
    fresh = play(Table(FromScratch(), 2, torch.float64, CPU), events)
    assert rule.scratch == []
    for a, b in zip(kept, fresh, strict=True):
        torch.testing.assert_close(a, b)


@given(replies)
def test_counts_are_the_replies_of_each_node(events: list[tuple[int, int]]) -> None:
    table: Table[object] = Table(CoordinateWiseMedian(), 2, torch.float64, CPU)
    play(table, events)
    order = list(dict.fromkeys(node for node, _ in events))
    expected = [sum(node == other for other, _ in events) for node in order]
    assert table.view().weights.tolist() == expected


@given(replies)
def test_rows_are_the_latest_vectors(events: list[tuple[int, int]]) -> None:
    table: Table[object] = Table(CoordinateWiseMedian(), 2, torch.float64, CPU)
    play(table, events)
    latest = dict(events)
    order = list(dict.fromkeys(node for node, _ in events))
    assert table.view().rows[:, 0].tolist() == [latest[node] for node in order]


def test_a_direction_does_not_change_when_the_table_does() -> None:
    table: Table[object] = Table(CoordinateWiseMedian(), 1, torch.float32, CPU)
    table.replace(0, torch.tensor([1.0]))
    direction = table.direction()
    table.replace(0, torch.tensor([5.0]))
    assert direction.tolist() == [1.0]


class StartsAgain(RunningMean):
    """The same mean, which leaves replies of the first node to `start`."""

    def update(self, state: Tensor, change: Change, view: TableView) -> Tensor | None:
        return None if change.index == (0,) else super().update(state, change, view)


@given(replies)
def test_a_rule_may_leave_a_change_to_its_start(events: list[tuple[int, int]]) -> None:
    kept = play(Table(StartsAgain(), 2, torch.float64, CPU), events)
    fresh = play(Table(FromScratch(), 2, torch.float64, CPU), events)
    for a, b in zip(kept, fresh, strict=True):
        torch.testing.assert_close(a, b)


class Raises(RunningMean):
    """The same mean, whose state is spoilt by an update that raises."""

    def update(self, state: Tensor, change: Change, view: TableView) -> Tensor | None:
        state.fill_(torch.nan)
        raise MemoryError


def test_an_update_that_raises_changes_nothing() -> None:
    table: Table[object] = Table(Raises(), 1, torch.float64, CPU)
    table.replace(0, torch.tensor([1.0]).double())
    assert table.direction().tolist() == [1.0]
    with pytest.raises(MemoryError):
        table.replace(0, torch.tensor([5.0]).double())
    assert table.view().weights.tolist() == [1]
    assert table.direction().tolist() == [1.0]
