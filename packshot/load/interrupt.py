"""Ctrl-C while a run counts ends that run early; at any other time it ends the command."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from packshot.load.senders import Senders


@contextmanager
def stopped_by_interrupt(clients: Senders) -> Iterator[None]:
    """In a loop that `asyncio.run` runs. A second Ctrl-C does what it always did.

    In another thread than the main one, which alone hears signals, nothing is changed.
    """
    before, loop = signal.getsignal(signal.SIGINT), asyncio.get_running_loop()
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        if clients.counting:
            loop.call_soon_threadsafe(clients.stop)
        else:
            before(number, frame)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
