"""Signals, noticed where the training loop can act on them."""

import os
import signal
import time
from types import FrameType

# Whoever signals a group of processes, and each of them too, does not mean it twice.
ONE_SIGNAL_SECONDS = 1.0
TOLD = b"\ninterrupted: finishing with the best checkpoint; again to stop at once\n"


class Interrupt:
    """Ctrl-C and SIGTERM, noticed between two steps. A second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._at = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._at = number, time.monotonic()
            os.write(2, TOLD)
        elif time.monotonic() - self._at > ONE_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
