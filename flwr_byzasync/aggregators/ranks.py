"""Weighted medians by counting: exact, without a sort, and cheap to update for one row.

For each row and coordinate, ``W_i = Σ_j s_j [x_j <= x_i]`` is the weight at or below it. The
lower median is the least x_i with ``2 W_i >= S``, the upper one the least with ``2 W_i > S``.
Weights are counts here: integers, whose sums a floating dtype holds exactly.

Counts and comparisons are kept in a floating dtype, and choices are made by maxima of infinities,
because these operations are vectorised: comparing into booleans and `torch.where` cost five and
thirty times as much.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_byzasync.aggregators.incremental import Change, TableView
from flwr_byzasync.aggregators.numerics import BLOCK

FEW = 32
"""Rows up to which counting all pairs, O(m² d), is at least twice as fast as sorting."""


def countable(weights: Tensor) -> bool:
    """Whether weights are counts that may be read at once: positive integers on the host."""
    if weights.is_floating_point() or not weights.is_cpu:
        return False
    return int(weights.min()) > 0 and int(weights.max()) * len(weights) < 2**53


def counting_dtype(dtype: torch.dtype, weights: Tensor) -> torch.dtype:
    """Return the smallest dtype that holds rows of `dtype` and sums of the counts exactly."""
    wide = dtype == torch.float64 or int(weights.sum()) >= 2**24
    return torch.float64 if wide else torch.float32


def counted_median(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the unrounded weighted median of each column.

    Parameters
    ----------
    rows : Tensor
        (m, d) floating.
    weights : Tensor
        (m,) `countable`.

    Returns
    -------
    Tensor
        (d,) float64; anything where a row is not finite.
    """
    dtype, total = counting_dtype(rows.dtype, weights), int(weights.sum())
    columns = (x.to(dtype) for (x,) in _blocks(rows))
    return torch.cat([_middle(x, _at_or_below(x, weights), total) for x in columns])


def midpoint(low: Tensor, high: Tensor) -> Tensor:
    """Return ``(low + high)/2`` in float64; a zero is +0.0, whichever of its signs was met."""
    if low is high:
        return low.to(torch.float64) + 0.0
    may_overflow = low.dtype == torch.float64
    low, high = low.to(torch.float64), high.to(torch.float64)
    middle = (low + high).div_(2).add_(0.0)
    return torch.where(middle.isfinite(), middle, low / 2 + high / 2) if may_overflow else middle


@dataclass(frozen=True)
class RankedMedian:
    """The coordinate-wise weighted median kept up to date: its state are the counts W, (m, d).

    Guarantees
    ----------
    The direction equals the call's bit for bit, because both select the same values. Rows must
    be finite and weights counts, which `TableView` promises.

    Cost
    ----
    O(m d) for a reply, where the call costs O(m² d) or a sort; O(m² d) to start. The counts
    take as much memory as the rows, twice as much for float32 rows once S reaches 2²⁴.
    """

    def start(self, view: TableView) -> Tensor:
        """Return the counts of a table."""
        dtype = counting_dtype(view.rows.dtype, view.weights)
        counts = torch.empty(view.rows.shape, dtype=dtype, device=view.rows.device)
        for x, into in _blocks(view.rows, counts):
            into.copy_(_at_or_below(x.to(dtype), view.weights))
        return counts

    def update(self, state: Tensor, change: Change, view: TableView) -> Tensor | None:
        """Return the counts after one row changed, written in place; None for other changes."""
        dtype = counting_dtype(view.rows.dtype, change.new_weights)
        if change.new_rows is None or not _one_row(change) or dtype != state.dtype:
            return None
        (index,), removed, old = change.index, 0, change.old_rows
        added = int(change.new_weights[index])
        if old is None:  # it joins: nothing is removed, wherever
            state, old = torch.cat([state, state.new_empty(1, state.shape[1])]), change.new_rows
        else:
            removed = int(change.old_weights[index])
        # The row itself counts once, with its new weight; its old value is about to go.
        others = change.new_weights[: len(view.rows)].clone()
        others[index : index + 1] = 0
        held = others.to(view.rows.device, dtype, non_blocking=True).unsqueeze(1)
        scratch = state.new_empty(len(view.rows), _width(view.rows))
        for x, counts, a, b in _blocks(view.rows, state, old, change.new_rows):
            rows, new = x.to(dtype), b[0].to(dtype)
            rest, into = counts[: len(rows)], scratch[:, : rows.shape[1]]
            _count(rest, rows, a[0].to(dtype), -removed, into)
            _count(rest, rows, new, added, into)
            below = torch.le(rows, new, out=into).mul_(held)
            torch.sum(below, dim=0, out=counts[index]).add_(added)
        return state

    def direction(self, state: Tensor, view: TableView) -> Tensor:
        """Return the weighted median in float64."""
        total, dtype = int(view.weights.sum()), state.dtype
        return torch.cat([_middle(x.to(dtype), w, total) for x, w in _blocks(view.rows, state)])


def _one_row(change: Change) -> bool:
    """Whether a single row is replaced or joins while all other weights stay."""
    if len(change.index) != 1 or change.new_rows is None:
        return False
    before = change.old_weights
    same = change.new_weights[: len(before)] == before
    same[change.index[0] : change.index[0] + 1] = True
    return bool(same.all())


def _at_or_below(rows: Tensor, weights: Tensor) -> Tensor:
    """Return ``W_i = Σ_j s_j [x_j <= x_i]``, (m, d)."""
    counts, scratch = torch.zeros_like(rows), torch.empty_like(rows)
    for row, weight in zip(rows, weights.tolist(), strict=True):
        _count(counts, rows, row, weight, scratch)
    return counts


def _count(counts: Tensor, rows: Tensor, value: Tensor, weight: int, scratch: Tensor) -> None:
    """Add ``weight·[value <= x_i]`` to the counts; `scratch` is overwritten."""
    if weight:
        counts.add_(torch.ge(rows, value, out=scratch), alpha=weight)


def _middle(rows: Tensor, counts: Tensor, total: int) -> Tensor:
    """Return the midpoint of the lower and the upper median, (d,) float64."""
    lower = _least(rows, counts, (total + 1) // 2)
    upper = lower if total % 2 else _least(rows, counts, total // 2 + 1)
    return midpoint(lower, upper)


def _least(rows: Tensor, counts: Tensor, enough: int) -> Tensor:
    """Return the least value of each column with at least `enough` weight at or below it."""
    # +inf where too little, −inf where enough: halves between integers are never 0, and exact.
    barred = torch.sub(counts, enough - 0.5).mul_(-torch.inf)
    return torch.maximum(rows, barred, out=barred).amin(dim=0)


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same columns of several (·, d) tensors, few enough to stay in cache."""
    width = _width(tensors[0])
    yield from zip(*(torch.split(t, width, dim=1) for t in tensors), strict=True)


def _width(rows: Tensor) -> int:
    return max(1, 8 * BLOCK // (rows.element_size() * rows.shape[0]))
