"""Sets of rows that lie pairwise close together."""

from collections.abc import Iterator

from flwr_byzasync.aggregators.selection import TIE


def _tightest(between: list[list[float]], weights: list[float], wanted: float) -> list[int]:
    """Return the heavy maximal cliques, as bit masks, at the least distance at which one exists."""
    heights = sorted({0.0, *(d for row in between for d in row)})
    low, high = 0, len(heights)
    while low < high:
        middle = (low + high) // 2
        found = any(_cliques(_joined(between, heights[middle]), weights, wanted))
        low, high = (low, middle) if found else (middle + 1, high)
    # No height is enough only where weights or rows are not finite: then nothing counts.
    return (
        [] if low == len(heights) else [*_cliques(_joined(between, heights[low]), weights, wanted)]
    )


def _joined(between: list[list[float]], height: float) -> list[int]:
    """Return for each row the mask of the other rows within `height`."""
    reach = height * (1.0 + TIE)
    return [
        sum(1 << j for j, d in enumerate(row) if d <= reach and j != i)
        for i, row in enumerate(between)
    ]


def _cliques(joined: list[int], weights: list[float], wanted: float) -> Iterator[int]:
    """Yield the maximal cliques of weight at least `wanted` (Bron and Kerbosch 1973, pivoted)."""

    def weight(mask: int) -> float:
        return sum(weights[i] for i in _members(mask))

    def grow(clique: int, held: float, open_: int, closed: int) -> Iterator[int]:
        # Cliques that cannot weigh enough are dropped here: it is what keeps the search short.
        if held + weight(open_) < wanted:
            return
        if not open_ and not closed:
            yield clique
            return
        pivot = max(_members(open_ | closed), key=lambda i: (open_ & joined[i]).bit_count())
        for i in _members(open_ & ~joined[pivot]):
            yield from grow(
                clique | 1 << i, held + weights[i], open_ & joined[i], closed & joined[i]
            )
            open_ &= ~(1 << i)
            closed |= 1 << i
            if held + weight(open_) < wanted:
                return

    yield from grow(0, 0.0, (1 << len(weights)) - 1, 0)


def _members(mask: int) -> Iterator[int]:
    """Yield the positions of a mask's bits."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
