"""The clock that a run goes by, the grid's own or this machine's, and which grids may fail."""

import time
from collections.abc import Callable


def clock_of(grid: object) -> tuple[Callable[[], float], Callable[[float], None]]:
    """Return a grid's own clock and way to sleep, or those of this machine."""
    clock, sleep = getattr(grid, "clock", None), getattr(grid, "sleep", None)
    return (clock, sleep) if callable(clock) and callable(sleep) else (time.monotonic, time.sleep)


def is_virtual(grid: object) -> bool:
    """Whether a grid computes in this process, on a clock of its own: no network is in between.

    A grid that has a clock of its own and a network as well says so by ``over_network = True``.
    """
    return clock_of(grid)[0] is not time.monotonic and not getattr(grid, "over_network", False)


def network_errors(grid: object) -> tuple[type[Exception], ...]:
    """Return the exceptions of a grid's calls that may be a network's, and are survived.

    They differ between Flower's releases, so over a network they are all of them. On a virtual
    grid there are none: what is raised there is an error in the caller's own code, an attack or
    a filter for example, and trying again would hide it.
    """
    return () if is_virtual(grid) else (Exception,)
