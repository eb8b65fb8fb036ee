"""The table of latest vectors, and the interface of incremental rules."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync.aggregators import CTMA, Aggregator, CoordinateWiseMedian, Mean
from flwr_byzasync.aggregators.incremental import Change, TableView
from flwr_byzasync.core.table import Table
from flwr_byzasync.weights import (
    Capped,
    Counts,
    StalenessDiscount,
    Uniform,
    WeightPolicy,
)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class RunningMean:
    """A weighted mean maintained as a weighted sum: the smallest incremental rule."""

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
    """The same rule, not incremental."""

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
def test_an_incremental_rule_gives_what_the_rule_gives_from_scratch(
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
def test_a_rule_may_leave_a_change_to_start(events: list[tuple[int, int]]) -> None:
    kept = play(Table(StartsAgain(), 2, torch.float64, CPU), events)
    fresh = play(Table(FromScratch(), 2, torch.float64, CPU), events)
    for a, b in zip(kept, fresh, strict=True):
        torch.testing.assert_close(a, b)


class Raises(RunningMean):
    """The same mean, whose state is corrupted by an update that raises."""

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


POLICIES = [
    Counts(),
    Uniform(),
    StalenessDiscount(0.5),
    Capped(Counts(), 0.3),
    Capped(StalenessDiscount(1.0), 0.25),
]
RULES = [CoordinateWiseMedian(), CTMA(CoordinateWiseMedian(), 0.3), RunningMean()]

churn = st.lists(
    st.one_of(
        st.tuples(st.just("reply"), st.integers(0, 4), st.integers(-9, 9), st.integers(0, 5)),
        st.tuples(st.just("drop"), st.integers(0, 4), st.just(0), st.just(0)),
    ),
    min_size=1,
    max_size=30,
)


@dataclass
class Model:
    """What a table must contain, computed naively."""

    policy: WeightPolicy
    nodes: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)
    step: int = 0

    def weights(self) -> Tensor:
        counts = torch.tensor([count for _, count, _ in self.nodes.values()])
        ages = self.step - torch.tensor([sent for _, _, sent in self.nodes.values()])
        return self.policy(counts, ages)

    def rows(self) -> Tensor:
        return torch.tensor([[value, -value] for value, _, _ in self.nodes.values()]).double()


def apply(table: Table[object], model: Model, event: tuple[str, int, int, int]) -> bool:
    """Apply an event to both; False if it cannot happen."""
    kind, node, value, age = event
    order = list(model.nodes)
    if kind == "drop":
        if node not in model.nodes:
            return False
        table.drop(order.index(node), model.step)
        del model.nodes[node]
        return bool(model.nodes)
    count = model.counts[node] = model.counts.get(node, 0) + 1
    sent = max(model.step - age, 0)
    index = order.index(node) if node in model.nodes else len(order)
    model.nodes[node] = (value, count, sent)
    row = torch.tensor([value, -value]).double()
    table.replace(index, row, count=count, sent=sent, step=model.step)
    return True


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@given(events=churn)
def test_a_direction_equals_the_rule_s_own_call_under_every_policy_and_churn(
    rule: Aggregator, policy: WeightPolicy, events: list[tuple[str, int, int, int]]
) -> None:
    table: Table[object] = Table(rule, 2, torch.float64, CPU, policy)
    model = Model(policy)
    for event in events:
        if apply(table, model, event):
            assert torch.equal(table.view().rows, model.rows())
            assert torch.equal(table.view().weights, model.weights())
            torch.testing.assert_close(table.direction(), rule(model.rows(), model.weights()))
            model.step += 1


def test_a_rule_is_updated_incrementally_only_while_weights_are_integers() -> None:
    rule = RunningMean()
    table: Table[object] = Table(rule, 1, torch.float64, CPU, Capped(Counts(), 0.4))
    one = torch.ones(1).double()
    for index in range(3):
        table.replace(index, one)
        table.direction()
    assert rule.scratch == []
    table.replace(0, one)  # counts 2, 1, 1: node 0 holds one half
    table.direction()
    assert rule.scratch == [3] and table.view().weights.is_floating_point()
    table.replace(1, one)
    table.direction()
    assert rule.scratch == [3] and table.view().weights.tolist() == [2, 2, 1]


def test_an_emptied_table_is_as_before_the_first_reply() -> None:
    table: Table[object] = Table(CoordinateWiseMedian(), 1, torch.float64, CPU)
    table.replace(0, torch.ones(1).double())
    table.direction()
    table.drop(0)
    assert len(table) == 0 and table.view().rows.shape == (0, 1) and table.counts == ()
    table.replace(0, 2 * torch.ones(1).double(), count=7)
    assert table.direction().tolist() == [2.0] and table.counts == (7,)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@given(events=churn)
def test_a_shift_moves_every_row_and_the_incremental_state(
    rule: Aggregator, events: list[tuple[str, int, int, int]]
) -> None:
    table: Table[object] = Table(rule, 2, torch.float64, CPU)
    model, offset = Model(Counts()), torch.tensor([8.0, -4.0]).double()
    for event in events:
        if not apply(table, model, event):
            continue
        table.shift(offset)
        moved = model.rows() + offset
        assert torch.equal(table.view().rows, moved)
        torch.testing.assert_close(table.direction(), rule(moved, model.weights()))
        torch.testing.assert_close(table.direction(-offset), rule(model.rows(), model.weights()))
        table.shift(-offset)
        model.step += 1


class Odd:
    laws = None

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        return rows.sum(dim=0) + 0 * weights.sum()


def test_an_unrelated_attribute_called_laws_declares_nothing() -> None:
    table: Table[object] = Table(Odd(), 1, torch.float64, CPU)
    for index in range(3):
        table.replace(index, torch.ones(1).double())
    assert table.direction(torch.ones(1).double()).tolist() == [6.0]


@given(churn)
def test_a_table_filled_from_another_continues_like_it(
    events: list[tuple[str, int, int, int]],
) -> None:
    policy = Capped(StalenessDiscount(), 0.5)
    table: Table[object] = Table(CoordinateWiseMedian(), 2, torch.float64, CPU, policy)
    model = Model(policy)
    for event in events:
        model.step += apply(table, model, event)
    other: Table[object] = Table(CoordinateWiseMedian(), 2, torch.float64, CPU, policy)
    other.fill(table.view().rows, table.counts, table.sent, model.step)
    last = torch.tensor([5.0, 5.0]).double()
    for each in (table, other):
        each.replace(len(each), last, count=1, sent=model.step, step=model.step)
    assert torch.equal(table.view().rows, other.view().rows)
    assert torch.equal(table.view().weights, other.view().weights)
    assert torch.equal(table.direction(), other.direction())


def test_filling_a_table_copies_its_rows() -> None:
    table: Table[object] = Table(CoordinateWiseMedian(), 1, torch.float64, CPU)
    rows = torch.ones(2, 1).double()
    table.fill(rows, [1, 1], [0, 0], step=0)
    table.replace(0, torch.zeros(1).double())
    assert rows.tolist() == [[1.0], [1.0]] and table.counts == (2, 1)
