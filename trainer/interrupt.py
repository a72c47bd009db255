"""Signals, noticed where the training loop can act on them."""

import os
import signal
from types import FrameType


class Interrupt:
    """Ctrl-C and SIGTERM, noticed between two steps. A second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, signal.SIG_DFL)
        os.write(2, b"\ninterrupted: finishing with the best checkpoint; again to stop at once\n")
