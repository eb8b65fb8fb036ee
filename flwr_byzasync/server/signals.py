"""SIGINT and SIGTERM wait until a checkpoint is written."""

import signal
import threading
from logging import getLogger
from types import FrameType, TracebackType
from typing import Any

logger = getLogger("flwr")

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Holds SIGINT and SIGTERM back inside its block, for the previous handler to get them later.

    Python allows this in the main thread only. Elsewhere, as in Flower's simulation, where the
    ServerApp runs in a thread, signals are not caught, and the log says so. A second signal does
    not wait, and one that is still pending when the block ends is handed on then. Signals that
    are ignored stay ignored.

    Examples
    --------
    >>> before = signal.signal(signal.SIGTERM, lambda number, frame: print("ended"))
    >>> with Signals() as signals:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     signals.pending
    True
    ended
    >>> _ = signal.signal(signal.SIGTERM, before)
    >>> with Signals() as signals:
    ...     signals.pending
    False
    """

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self._noted: int | None = None
        self.pressing = False
        """Whether a second signal arrived while the first was waiting."""

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            logger.info(
                "SIGINT and SIGTERM cannot be caught in this thread: "
                "a signal loses the replies since the last checkpoint."
            )
            return self
        for number in CAUGHT:
            handler = signal.getsignal(number)
            if handler not in (None, signal.SIG_IGN):
                self._previous[number] = handler
                signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.pending:  # it arrived after the last hand-over
            self.hand_on(last=True)

    @property
    def pending(self) -> bool:
        """Whether a signal arrived and was not handed on."""
        return self._noted is not None

    def hand_on(self, last: bool = False) -> None:
        """Hand the pending signal, if there is one, to the previous handler.

        Parameters
        ----------
        last : bool, default False
            Whether later signals are no longer held back.
        """
        number, self._noted = self._noted, None
        if number is not None:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
            # The previous handler returned: the run goes on.
            if not last:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.pending:
            self.pressing = True
            self.hand_on()
        self._noted = number
