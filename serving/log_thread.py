"""Log lines are written by a thread of their own.

Standard error is a pipe in most deployments. If whoever reads it stops, a write blocks: on the
event loop that would end every answer, on a lane its engine. Here it ends the log only.
"""

import logging
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TextIO

LINES_WAITING = 10_000
"""More are lost, and counted: about 3 MB of lines of the access log."""

CLOSE_SECONDS = 2.0
"""At the end, lines that still wait are written for this long."""

log = logging.getLogger("packshot.logs")


class Lines(logging.StreamHandler[TextIO]):
    """`on_lost` is called for each record that cannot be written: a full disk, nobody reads."""

    on_lost: Callable[[], None] = staticmethod(lambda: None)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if isinstance(sys.exception(), OSError):
            self.on_lost()
        else:
            super().handleError(record)


class LogThread(logging.Handler):
    """Hands records to another handler, in a thread. Nothing that logs ever waits.

    `on_lost` is called for each record that had no room, or could not be written.
    """

    def __init__(self, handler: Lines, lines_waiting: int = LINES_WAITING) -> None:
        super().__init__()
        self.on_lost: Callable[[], None] = lambda: None
        handler.on_lost = lambda: self.on_lost()
        self._handler = handler
        self._room = lines_waiting
        self._lost = 0
        # Not one with a size of its own: its lock could be held by what a signal interrupted.
        self._records: SimpleQueue[logging.LogRecord | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._records.qsize() < self._room:
            self._records.put(record)
        else:
            self._lost += 1
            self.on_lost()

    def _write(self) -> None:
        while (record := self._records.get()) is not None:
            self._handler.handle(record)
            if self._lost:
                lost, self._lost = self._lost, 0
                self._handler.handle(_lost_record(lost))

    @property
    def stuck(self) -> bool:
        """After `close`: the thread still waits for whoever should read."""
        return self._thread.is_alive()

    def close(self) -> None:
        self._records.put(None)
        self._thread.join(CLOSE_SECONDS)
        super().close()


def _lost_record(lost: int) -> logging.LogRecord:
    message = "%d log lines are lost: what reads this log is too slow"
    return log.makeRecord(log.name, logging.WARNING, __file__, 0, message, (lost,), None)
