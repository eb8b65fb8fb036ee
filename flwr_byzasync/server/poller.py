"""Pulls that may hang, each in a thread of its own: only the node that causes it waits for it."""

import time
from collections.abc import Callable, Container
from concurrent.futures import Future, wait
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Generic, TypeVar

Reply = TypeVar("Reply")

PASS_TIMEOUT = 1.0
"""Seconds that one pass over the book waits for its pulls, in all."""
MAX_HANGING_PULLS = 3
"""Pulls of one node that may hang at once, so that threads are few however often it is asked.
Beyond that its messages are not pulled until one of them ends; no other node notices."""


class ReplyPoller(Generic[Reply]):
    """Pulls the replies to messages; one that takes long is looked for again in later passes.

    A SuperLink announces a reply once its node has promised it, and Flower's pull then waits for
    the promised objects: in flwr 1.41 up to three minutes for each, and two hours for all. Mostly
    it ends in milliseconds, and then `look` returns what the call would have returned.

    Parameters
    ----------
    pull : callable
        ``message_id -> replies``. Called by several threads at once.
    threads : bool
        False calls it in the caller's thread, for as long as it takes: on a virtual clock nothing
        hangs, and nothing may depend on this machine's.

    Notes
    -----
    The threads are daemons: a process that ends does not wait for them. There are at most
    `MOST_OF_A_NODE` for each node.

    Examples
    --------
    >>> pulls = Pulls(lambda message_id: [f"reply to {message_id}"], threads=True)
    >>> pulls.begin_pass({"m1"})
    >>> pulls.look("m1", node_id=7)
    ['reply to m1']
    """

    def __init__(self, pull: Callable[[str], list[Reply]], threads: bool) -> None:
        self._pull, self._threads = pull, threads
        self._running: dict[str, tuple[int, Future[list[Reply]]]] = {}
        self._patience = 0.0

    def begin_pass(self, book: Container[str]) -> None:
        """Have patience again, and forget what came of messages that are struck out of the book."""
        self._patience = PASS_TIMEOUT
        self._running = {
            message_id: (node_id, pulled)
            for message_id, (node_id, pulled) in self._running.items()
            if message_id in book or not pulled.done()
        }

    def poll(self, message_id: str, node_id: int) -> list[Reply] | None:
        """Return the replies to a message to a node, or None while the pull goes on.

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
        """Start a pull, and wait for it as long as there is patience left in this pass."""
        pulled: Future[list[Reply]] = Future()
        # What a grid keeps in context variables, such as a trace, is there in the thread as well.
        work = partial(copy_context().run, _fill, pulled, self._pull, message_id)
        Thread(target=work, name=f"pull-{node_id}", daemon=True).start()
        self._running[message_id] = (node_id, pulled)
        began = time.monotonic()
        wait([pulled], timeout=self._patience)
        self._patience = max(0.0, self._patience - (time.monotonic() - began))


def _fill(
    pulled: "Future[list[Reply]]", pull: Callable[[str], list[Reply]], message_id: str
) -> None:
    """Note what a pull returns or raises, be it that its run was stopped, which is no Exception."""
    try:
        pulled.set_result(pull(message_id))
    except BaseException as error:
        pulled.set_exception(error)
