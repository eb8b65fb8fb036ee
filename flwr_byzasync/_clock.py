"""The clock that a run goes by: the grid's own, or this machine's."""

import time
from collections.abc import Callable


def clock_of(grid: object) -> tuple[Callable[[], float], Callable[[float], None]]:
    """Return a grid's own clock and way to sleep, or those of this machine."""
    clock, sleep = getattr(grid, "clock", None), getattr(grid, "sleep", None)
    return (clock, sleep) if callable(clock) and callable(sleep) else (time.monotonic, time.sleep)
