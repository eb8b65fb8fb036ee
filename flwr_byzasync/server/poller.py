"""Pulls of replies, each in a thread of its own: one that hangs delays only its own node."""

import time
from collections.abc import Callable, Container
from concurrent.futures import Future, wait
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Generic, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from flwr_byzasync._clock import clock_of

Reply = TypeVar("Reply")

PASS_TIMEOUT = 1.0
"""Seconds that one pass over the messages in flight waits for its pulls, in total."""
MAX_HANGING_PULLS = 3
"""Hanging pulls per node, so that threads stay few however often a node is queried. Beyond that
its messages are not pulled until one of them ends; other nodes are not affected."""


class ReplyPoller(Generic[Reply]):
    """Pulls replies; a pull that takes long is checked again in later passes.

    A SuperLink announces a reply once its node has promised it, and Flower's pull then waits for
    the promised objects: in flwr 1.41 up to three minutes for each, and two hours in total.
    Usually it ends in milliseconds, and then `poll` returns what the call returned.

    Parameters
    ----------
    pull : callable
        ``message_id -> replies``. Called by several threads at once.
    threads : bool
        False calls it in the caller's thread, for as long as it takes: on a virtual clock
        nothing hangs, and nothing may depend on this machine's.

    Notes
    -----
    The threads are daemons: a process that ends does not wait for them. There are at most
    `MAX_HANGING_PULLS` per node.

    Examples
    --------
    >>> poller = ReplyPoller(lambda message_id: [f"reply to {message_id}"], threads=True)
    >>> poller.begin_pass({"m1"})
    >>> poller.poll("m1", node_id=7)
    ['reply to m1']
    """

    def __init__(self, pull: Callable[[str], list[Reply]], threads: bool) -> None:
        self._pull, self._threads = pull, threads
        self._running: dict[str, tuple[int, Future[list[Reply]]]] = {}
        self._time_left = 0.0

    def begin_pass(self, in_flight: Container[str]) -> None:
        """Reset the time of a pass, and forget results for messages no longer in flight."""
        self._time_left = PASS_TIMEOUT
        self._running = {
            message_id: (node_id, pulled)
            for message_id, (node_id, pulled) in self._running.items()
            if message_id in in_flight or not pulled.done()
        }

    def poll(self, message_id: str, node_id: int) -> list[Reply] | None:
        """Return the replies to a message to a node, or None while the pull is running.

        Raises
        ------
        BaseException
            What the pull raised.
        """
        if not self._threads:
            return self._pull(message_id)
        if message_id not in self._running:
            if self._hanging(node_id) >= MAX_HANGING_PULLS:
                return None
            self._begin(message_id, node_id)
        _, pulled = self._running[message_id]
        if not pulled.done():
            return None
        del self._running[message_id]
        return pulled.result()

    def _hanging(self, node_id: int) -> int:
        return sum(node == node_id and not each.done() for node, each in self._running.values())

    def _begin(self, message_id: str, node_id: int) -> None:
        """Start a pull, and wait for it while there is time left in this pass."""
        pulled: Future[list[Reply]] = Future()
        # Context variables of a grid, such as a trace, are available in the thread too.
        work = partial(copy_context().run, _fill, pulled, self._pull, message_id)
        Thread(target=work, name=f"pull-{node_id}", daemon=True).start()
        self._running[message_id] = (node_id, pulled)
        began = time.monotonic()
        wait([pulled], timeout=self._time_left)
        self._time_left = max(0.0, self._time_left - (time.monotonic() - began))


def poller_of(grid: Grid) -> ReplyPoller[Message]:
    """Return a poller of replies from a grid, one message at a time."""

    def replies(message_id: str) -> list[Message]:
        return list(grid.pull_messages([message_id]))

    # A grid with a clock of its own computes where it is called: nothing there can hang.
    return ReplyPoller(replies, threads=clock_of(grid)[0] is time.monotonic)


def _fill(
    pulled: "Future[list[Reply]]", pull: Callable[[str], list[Reply]], message_id: str
) -> None:
    """Store what a pull returns or raises; a stopped run raises something that is no Exception."""
    try:
        pulled.set_result(pull(message_id))
    except BaseException as error:
        pulled.set_exception(error)
