"""SIGINT and SIGTERM wait until a run has been written down."""

import signal
import threading
from logging import getLogger
from types import FrameType, TracebackType
from typing import Any

logger = getLogger("flwr")

CAUGHT = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Takes note of SIGINT and SIGTERM inside its block; who had them before gets them later.

    Python lets only the main thread do so. Elsewhere, as in Flower's simulation, where the
    ServerApp runs in a thread, nothing is caught, and the log says so. A second signal is not
    kept waiting, and one that nobody looked at is handed on when the block ends. A signal that is
    ignored stays ignored.

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
        """Whether a second one came while the first was waiting."""

    def __enter__(self) -> "Signals":
        if threading.current_thread() is not threading.main_thread():
            logger.info(
                "SIGINT and SIGTERM cannot be caught in this thread: "
                "what ends this run loses the replies since its last checkpoint."
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
        if self.pending:  # it came when nobody looked any more
            self.hand_on(last=True)

    @property
    def pending(self) -> bool:
        """Whether one was sent and not handed on."""
        return self._noted is not None

    def hand_on(self, last: bool = False) -> None:
        """Let the previous handler have the signal that was noted, if there is one.

        Parameters
        ----------
        last : bool, default False
            Whether no later one is to be noted.
        """
        number, self._noted = self._noted, None
        if number is not None:
            signal.signal(number, self._previous[number])
            signal.raise_signal(number)
            # Still here: the previous handler lets the run go on.
            if not last:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.pending:
            self.pressing = True
            self.hand_on()
        self._noted = number
