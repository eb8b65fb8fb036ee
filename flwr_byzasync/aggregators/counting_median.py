"""Weighted medians by counting: exact, without sorting, and cheap to update for one row.

For each row and coordinate, ``W_i = Σ_j s_j [x_j <= x_i]`` is the weight at or below it. The
lower median is the least x_i with ``2 W_i >= S``, the upper one the least with ``2 W_i > S``.
Weights are counts here: integers whose sums a floating dtype represents exactly.

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
"""Up to this many rows, counting all pairs, O(m² d), is at least twice as fast as sorting."""


def countable(weights: Tensor) -> bool:
    """Whether weights are positive integers on the host with exactly representable sums."""
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
        (d,) float64; unspecified if a row is not finite.
    """
    dtype, total, middle = counting_dtype(rows.dtype, weights), int(weights.sum()), []
    for scratch, x in _blocks(dtype, rows):
        counts = torch.zeros_like(x)
        _count_all(counts, x, weights, scratch)
        middle.append(_middle(x, counts, total, scratch))
    return torch.cat(middle)


def midpoint(low: Tensor, high: Tensor) -> Tensor:
    """Return ``(low + high)/2`` in float64; a zero is always +0.0."""
    if low is high:
        return low.to(torch.float64) + 0.0
    may_overflow = low.dtype == torch.float64
    low, high = low.to(torch.float64), high.to(torch.float64)
    middle = (low + high).div_(2).add_(0.0)
    return torch.where(middle.isfinite(), middle, low / 2 + high / 2) if may_overflow else middle


@dataclass(frozen=True)
class IncrementalMedian:
    """Incremental coordinate-wise weighted median; its state is the counts W, (m, d).

    Guarantees
    ----------
    The direction equals the call's bit for bit, because both select the same values. Rows must
    be finite and weights counts, which `TableView` promises.

    Cost
    ----
    O(m d) per reply; `start` costs as much as a call. The counts take as much memory as the rows,
    twice as much for float32 rows once S reaches 2²⁴.
    """

    def start(self, view: TableView) -> Tensor:
        """Return the counts of a table."""
        dtype = counting_dtype(view.rows.dtype, view.weights)
        state = torch.zeros(view.rows.shape, dtype=dtype, device=view.rows.device)
        weights = view.weights_beside_rows()
        for scratch, x, counts in _blocks(dtype, view.rows, state):
            if len(x) <= FEW:
                _count_all(counts, x, view.weights, scratch)
            else:
                counts.copy_(_counts_by_sorting(x, weights))
        return state

    def update(self, state: Tensor, change: Change, view: TableView) -> Tensor | None:
        """Return the counts, updated in place after one row changed; None for other changes."""
        dtype = counting_dtype(view.rows.dtype, change.new_weights)
        if change.new_rows is None or not _one_row(change) or dtype != state.dtype:
            return None
        (index,), removed, old = change.index, 0, change.old_rows
        added = int(change.new_weights[index])
        if old is None:  # a new node: nothing to remove
            state, old = torch.cat([state, state.new_empty(1, state.shape[1])]), change.new_rows
        else:
            removed = int(change.old_weights[index])
        # The row itself counts once, with its new weight: its old value is being replaced.
        others = change.new_weights[: len(view.rows)].clone()
        others[index : index + 1] = 0
        held = others.to(view.rows.device, dtype, non_blocking=True).unsqueeze(1)
        changed = old.to(dtype), change.new_rows.to(dtype)
        for scratch, x, counts, a, b in _blocks(dtype, view.rows, state, *changed):
            rest = counts[: len(x)]
            _count(rest, x, a, -removed, scratch)
            _count(rest, x, b, added, scratch)
            below = torch.le(x, b, out=scratch).mul_(held)
            torch.sum(below, dim=0, out=counts[index]).add_(added)
        return state

    def direction(self, state: Tensor, view: TableView) -> Tensor:
        """Return the weighted median in float64."""
        total, blocks = int(view.weights.sum()), _blocks(state.dtype, view.rows, state)
        return torch.cat([_middle(x, counts, total, scratch) for scratch, x, counts in blocks])


def _one_row(change: Change) -> bool:
    """Whether a single row is replaced or added and all other weights stay the same."""
    if len(change.index) != 1 or change.new_rows is None:
        return False
    before = change.old_weights
    same = change.new_weights[: len(before)] == before
    same[change.index[0] : change.index[0] + 1] = True
    return bool(same.all())


def _count_all(counts: Tensor, rows: Tensor, weights: Tensor, scratch: Tensor) -> None:
    """Add ``Σ_j s_j [x_j <= x_i]`` to the counts."""
    for row, weight in zip(rows, weights.tolist(), strict=True):
        _count(counts, rows, row, weight, scratch)


def _counts_by_sorting(rows: Tensor, weights: Tensor) -> Tensor:
    """Return ``Σ_j s_j [x_j <= x_i]`` in int64: the cumulative weight at the last of its ties."""
    columns = rows.t().contiguous()
    values, order = torch.sort(columns, dim=1)
    last = torch.searchsorted(values, columns, right=True) - 1
    return weights[order].cumsum(dim=1).gather(1, last).t()


def _count(counts: Tensor, rows: Tensor, value: Tensor, weight: int, scratch: Tensor) -> None:
    """Add ``weight·[value <= x_i]`` to the counts."""
    if weight:
        counts.add_(torch.ge(rows, value, out=scratch), alpha=weight)


def _middle(rows: Tensor, counts: Tensor, total: int, scratch: Tensor) -> Tensor:
    """Return the midpoint of the lower and the upper median, (d,) float64."""
    lower = _least(rows, counts, (total + 1) // 2, scratch)
    upper = lower if total % 2 else _least(rows, counts, total // 2 + 1, scratch)
    return midpoint(lower, upper)


def _least(rows: Tensor, counts: Tensor, enough: int, scratch: Tensor) -> Tensor:
    """Return the least value of each column with at least `enough` weight at or below it."""
    # +inf where too little, −inf where enough: the half between integers is exact and never 0.
    barred = torch.sub(counts, enough - 0.5, out=scratch).mul_(-torch.inf)
    return torch.maximum(rows, barred, out=scratch).amin(dim=0)


def _blocks(dtype: torch.dtype, rows: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield scratch memory and the same columns of all tensors, few enough to fit in the cache.

    Rows and scratch are (m, ·) of `dtype`. The scratch is the same for all blocks.
    """
    width = max(1, 8 * BLOCK // (dtype.itemsize * rows.shape[0]))
    scratch = torch.empty(rows.shape[0], width, dtype=dtype, device=rows.device)
    for x, *rest in zip(*(torch.split(t, width, dim=1) for t in (rows, *others)), strict=True):
        yield scratch[:, : x.shape[1]], x.to(dtype), *rest
