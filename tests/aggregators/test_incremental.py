"""Incremental rules against the same rules called from scratch, bit for bit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync.aggregators import Aggregator, CoordinateWiseMedian, build
from flwr_byzasync.aggregators.counting_median import (
    FEW,
    IncrementalMedian,
    countable,
    counted_median,
    midpoint,
)
from flwr_byzasync.aggregators.incremental import Change, Incremental, TableView, incremental_of
from flwr_byzasync.aggregators.median import middle_values
from flwr_byzasync.core.table import Table
from tests.generators import Weighted, float_rows, weighted

CPU = torch.device("cpu")
SIZE = 3
KEPT = ("cwmed", "cwmed-unweighted", "ctma(cwmed)", "ctma(ctma(cwmed))", "ctma(cwmed)-unweighted")
FRESH = ("mean", "gm", "rfa", "gm-unweighted", "ctma(gm)", "ctma(gm)-unweighted")
# Few values, so that ties and equal rows are common; zeros of both signs; close to the ends.
VALUES = {
    torch.float32: (0.0, -0.0, 1.0, -1.0, 0.1, 3e38, -3e38, 1e-45),
    torch.float64: (0.0, -0.0, 1.0, -1.0, 0.1, 1e150, -1e150, 5e-324),
}

kept = pytest.mark.parametrize("name", KEPT)
dtypes = pytest.mark.parametrize(
    "dtype",
    [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)],
    ids=["float32", "float64"],
)


def bits(vector: Tensor) -> list[int]:
    return vector.view(torch.int32 if vector.dtype == torch.float32 else torch.int64).tolist()


def incremental(rule: Aggregator) -> Incremental[Any]:
    made = incremental_of(rule)
    assert made is not None
    return made


# --- what can happen to a table ----------------------------------------------------------------
@dataclass(frozen=True)
class Event:
    """One change of a table of any size; `picks` choose rows, `values` index into `VALUES`."""

    kind: str
    picks: tuple[int, int]
    values: tuple[int, ...]
    growth: int

    def of(self, view: TableView) -> Change:
        m, weights = len(view.rows), view.weights.clone()
        palette = torch.tensor(VALUES[view.rows.dtype], dtype=view.rows.dtype)
        row = palette[list(self.values)].unsqueeze(0)
        index = self.picks[0] % (m + (self.kind == "reply"))
        if self.kind == "leave" and m > 1:
            rest = torch.cat([weights[:index], weights[index + 1 :]])
            return Change((index,), view.rows[index : index + 1], None, weights, rest)
        if index == m:
            joined = torch.cat([weights, torch.tensor([self.growth])])
            return Change((m,), None, row, weights, joined)
        new = weights.clone()
        new[index] += self.growth
        indices = (index,)
        if self.kind == "several" and m > 1:
            other = (index + 1 + self.picks[1] % (m - 1)) % m
            indices = (index, other)
            new[other] += self.growth
        elif self.kind == "reweigh":
            new += torch.arange(m) * self.growth
        rows = torch.cat([row, row.flip(1)])[: len(indices)]
        return Change(indices, view.rows[list(indices)], rows, weights, new)


def events(*kinds: str) -> st.SearchStrategy[list[Event]]:
    event = st.builds(
        Event,
        kind=st.sampled_from(kinds),
        picks=st.tuples(st.integers(0, 6), st.integers(0, 6)),
        values=st.tuples(*[st.integers(0, len(VALUES[torch.float32]) - 1)] * SIZE),
        growth=st.integers(1, 3),
    )
    return st.lists(event, min_size=1, max_size=15)


any_change = events("reply", "reply", "reply", "several", "reweigh", "leave")
replies = events("reply")


def after(view: TableView, change: Change) -> TableView:
    """The table once the change is made, in memory of its own."""
    if change.new_rows is None:
        index = change.index[0]
        rows = torch.cat([view.rows[:index], view.rows[index + 1 :]])
    elif change.old_rows is None:
        rows = torch.cat([view.rows, change.new_rows])
    else:
        rows = view.rows.clone()
        rows[list(change.index)] = change.new_rows
    return TableView(rows, change.new_weights)


def check(
    rule: Aggregator, how: Incremental[Any], dtype: torch.dtype, happens: list[Event]
) -> list[int]:
    """Assert agreement after every change; return where the state had to be started again."""
    view = TableView(torch.tensor([[1.0, 0.0, -1.0]], dtype=dtype), torch.tensor([1]))
    state, restarts = how.start(view), []
    for number, event in enumerate(happens):
        change = event.of(view)
        state, view = how.update(state, change, view), after(view, change)
        if state is None:
            state = how.start(view)
            restarts.append(number)
        direction = how.direction(state, view)
        assert bits(direction.to(dtype)) == bits(rule(view.rows, view.weights))
    return restarts


# --- agreement ---------------------------------------------------------------------------------
@kept
@dtypes
@given(happens=any_change)
def test_after_any_change_the_direction_is_what_the_call_returns(
    name: str, dtype: torch.dtype, happens: list[Event]
) -> None:
    rule = build(name, byz_fraction=0.2)
    check(rule, incremental(rule), dtype, happens)


@kept
@given(happens=replies)
@settings(max_examples=20)
def test_a_reply_never_starts_the_state_again(name: str, happens: list[Event]) -> None:
    rule = build(name, byz_fraction=0.2)
    assert check(rule, incremental(rule), torch.float32, happens) == []


@kept
@dtypes
@given(happens=replies)
@settings(max_examples=20)
def test_a_table_gives_what_the_call_gives_on_it(
    name: str, dtype: torch.dtype, happens: list[Event]
) -> None:
    rule = build(name, byz_fraction=0.2)
    table: Table[object] = Table(rule, SIZE, dtype, CPU)
    table.replace(0, torch.zeros(SIZE, dtype=dtype))
    for event in happens:
        change = event.of(table.view())
        assert change.new_rows is not None
        table.replace(change.index[0], change.new_rows[0])
        view = table.view()
        assert bits(table.direction()) == bits(rule(view.rows, view.weights))


@dtypes
def test_blocks_of_columns_are_put_together_in_order(dtype: torch.dtype) -> None:
    generator, rule = torch.Generator().manual_seed(0), CoordinateWiseMedian()
    table: Table[object] = Table(rule, 60_000, dtype, CPU)
    for node in (0, 1, 2, 3, 4, 2, 0, 0, 5, 1):
        table.replace(node, torch.randn(60_000, generator=generator).to(dtype))
        view = table.view()
        assert bits(table.direction()) == bits(rule(view.rows, view.weights))


def test_the_largest_values_of_float64_have_a_finite_midpoint() -> None:
    table: Table[object] = Table(CoordinateWiseMedian(), 1, torch.float64, CPU)
    largest = torch.finfo(torch.float64).max
    for node in (0, 1):
        table.replace(node, torch.full((1,), largest, dtype=torch.float64))
        assert table.direction().tolist() == [largest]


@pytest.mark.parametrize("half", [10, 2**23 - 1, 2**24, 2**40])
def test_one_reply_decides_between_halves_of_any_size(half: int) -> None:
    rows, rule = torch.tensor([[0.0], [1.0], [2.0]]), CoordinateWiseMedian()
    view, how = (
        TableView(rows, torch.tensor([half, half - half // 3 - 1, half // 3])),
        IncrementalMedian(),
    )
    state = how.start(view)
    for expected in (0.5, 1.0):
        more = view.weights + torch.tensor([0, 1, 0])
        change = Change((1,), rows[1:2], rows[1:2], view.weights, more)
        updated, view = how.update(state, change, view), TableView(rows, more)
        assert updated is not None
        state = updated
        assert how.direction(state, view).tolist() == rule(rows, more).tolist() == [expected]


def test_counts_that_outgrow_float32_are_started_again() -> None:
    rows, how = torch.tensor([[0.0], [1.0]]), IncrementalMedian()
    before, later = torch.tensor([2**23, 2**23 - 1]), torch.tensor([2**23, 2**23])
    view = TableView(rows, before)
    state = how.start(view)
    assert state.dtype == torch.float32
    assert how.update(state, Change((1,), rows[1:], rows[1:], before, later), view) is None
    assert how.start(TableView(rows, later)).dtype == torch.float64


# --- the check can fail ------------------------------------------------------------------------
class ForgetsToRemove(IncrementalMedian):
    def update(self, state: Tensor, change: Change, view: TableView) -> Tensor | None:
        if change.old_rows is not None and len(change.index) == 1:
            change = replace(change, old_rows=change.new_rows)
        return super().update(state, change, view)


class MissesTies(IncrementalMedian):
    def update(self, state: Tensor, change: Change, view: TableView) -> Tensor | None:
        if change.new_rows is not None and len(change.index) == 1:
            infinity = torch.full_like(change.new_rows, torch.inf)
            change = replace(change, new_rows=torch.nextafter(change.new_rows, infinity))
        return super().update(state, change, view)


class NeverUpdates(IncrementalMedian):
    def update(self, state: Tensor, change: Change, view: TableView) -> Tensor | None:
        stays = change.old_rows is not None and change.new_rows is not None
        return state if stays else super().update(state, change, view)


@pytest.mark.parametrize("wrong", [ForgetsToRemove, MissesTies, NeverUpdates])
def test_a_wrong_update_is_caught(wrong: Callable[[], IncrementalMedian]) -> None:
    quick = settings(max_examples=300, derandomize=True, database=None, phases=[Phase.generate])
    rule = CoordinateWiseMedian()

    def caught(happens: list[Event]) -> bool:
        try:
            check(rule, wrong(), torch.float32, happens)
        except AssertionError:
            return True
        return False

    happens = find(replies, caught, settings=quick)
    check(rule, IncrementalMedian(), torch.float32, happens)


# --- which rules -------------------------------------------------------------------------------
@kept
def test_rules_over_the_median_are_kept_up_to_date(name: str) -> None:
    assert incremental_of(build(name, byz_fraction=0.2)) is not None


@pytest.mark.parametrize("name", FRESH)
def test_other_rules_are_called_from_scratch(name: str) -> None:
    assert incremental_of(build(name, byz_fraction=0.2)) is None


def test_a_function_is_called_from_scratch() -> None:
    assert incremental_of(lambda rows, _: rows[0]) is None


# --- counting against sorting ------------------------------------------------------------------
@given(st.one_of(weighted(), weighted(float_rows)))
def test_counting_and_sorting_select_the_same_values(case: Weighted) -> None:
    rows, weights = case.rows, case.weights + 1
    assert countable(weights)
    by_sorting = midpoint(*middle_values(rows, weights))
    assert bits(counted_median(rows, weights)) == bits(by_sorting)


@pytest.mark.parametrize("m", [1, 2, FEW - 1, FEW, FEW + 1])
def test_the_median_does_not_depend_on_how_it_is_found(m: int) -> None:
    generator = torch.Generator().manual_seed(m)
    rows = torch.randint(-9, 9, (m, 200), generator=generator).double()
    weights = torch.randint(1, 4, (m,), generator=generator)
    result = CoordinateWiseMedian()(rows, weights)
    assert bits(result) == bits(midpoint(*middle_values(rows, weights)))
    assert bits(result) == bits(counted_median(rows, weights))


@pytest.mark.parametrize("m", [1, 2, FEW, FEW + 1])
def test_the_state_is_the_weight_at_or_below_each_value(m: int) -> None:
    generator = torch.Generator().manual_seed(m)
    rows = torch.randint(-9, 9, (m, 200), generator=generator).float()
    weights = torch.randint(1, 4, (m,), generator=generator)
    at_or_below = (rows.unsqueeze(0) <= rows.unsqueeze(1)) * weights[:, None]
    state = IncrementalMedian().start(TableView(rows, weights))
    assert torch.equal(state, at_or_below.sum(dim=1).float())


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([1, 2], True),
        ([2**52 - 1, 1], True),
        ([1, 0], False),
        ([1, -1], False),
        ([1.0, 2.0], False),
        ([2**53, 1], False),
        ([2**62, 2**62], False),
    ],
    ids=str,
)
def test_only_positive_integers_of_exact_sum_are_counted(
    weights: list[float], counts: bool
) -> None:
    assert countable(torch.tensor(weights)) == counts


@pytest.mark.parametrize("low", [0.0, -0.0])
@pytest.mark.parametrize("high", [0.0, -0.0])
def test_a_median_of_zeros_is_the_positive_zero(low: float, high: float) -> None:
    rows = torch.tensor([[low], [high]])
    for weights in (torch.tensor([1, 1]), torch.tensor([2, 1]), torch.tensor([1.0, 1.0])):
        assert bits(CoordinateWiseMedian()(rows, weights)) == [0]
