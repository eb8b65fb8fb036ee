"""Maximal cliques of rows that are pairwise close, for `MDA`."""

from collections.abc import Iterator

from flwr_byzasync.aggregators.selection import TIE


def tightest_cliques(
    between: list[list[float]], weights: list[float], target_weight: float
) -> list[int]:
    """Return the heavy maximal cliques, as bit masks, at the least distance at which one exists.

    Parameters
    ----------
    between : list of list of float
        (m, m) distances.
    weights : list of float
        (m,).
    target_weight : float
        The least weight of a heavy clique.
    """
    heights = sorted({0.0, *(d for row in between for d in row)})
    low, high = 0, len(heights)
    while low < high:
        middle = (low + high) // 2
        found = any(_cliques(_joined(between, heights[middle]), weights, target_weight))
        low, high = (low, middle) if found else (middle + 1, high)
    if low == len(heights):  # only if weights or rows are not finite: the result is NaN anyway
        return []
    return [*_cliques(_joined(between, heights[low]), weights, target_weight)]


def _joined(between: list[list[float]], height: float) -> list[int]:
    """Return for each row the mask of the other rows within `height`."""
    reach = height * (1.0 + TIE)
    return [
        sum(1 << j for j, d in enumerate(row) if d <= reach and j != i)
        for i, row in enumerate(between)
    ]


def _cliques(joined: list[int], weights: list[float], target_weight: float) -> Iterator[int]:
    """Yield the maximal cliques that reach the target (Bron and Kerbosch 1973, pivoted)."""

    def weight(mask: int) -> float:
        return sum(weights[i] for i in members(mask))

    def grow(clique: int, held: float, open_: int, closed: int) -> Iterator[int]:
        # Prune cliques that cannot reach the target: this is what keeps the search short.
        if held + weight(open_) < target_weight:
            return
        if not open_ and not closed:
            yield clique
            return
        pivot = max(members(open_ | closed), key=lambda i: (open_ & joined[i]).bit_count())
        for i in members(open_ & ~joined[pivot]):
            yield from grow(
                clique | 1 << i, held + weights[i], open_ & joined[i], closed & joined[i]
            )
            open_ &= ~(1 << i)
            closed |= 1 << i
            if held + weight(open_) < target_weight:
                return

    yield from grow(0, 0.0, (1 << len(weights)) - 1, 0)


def members(mask: int) -> Iterator[int]:
    """Yield the positions of a mask's bits."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
