"""Ctrl-C once a run counts ends it early; at any other time it ends the command.

So do SIGTERM and SIGHUP, once the command has asked for it.
"""

import asyncio
import itertools
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from packshot.load.senders import Senders

ENDS = (signal.SIGTERM, signal.SIGHUP)
MOST_STOPS = 2  # of one run


def interrupt_on_termination() -> None:
    """From now on they do what Ctrl-C does, but for one that is to be ignored, as nohup asks."""
    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    _hear_no_more()
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    if not callable(on_ctrl_c):  # ignored, as by what a shell runs in the background
        raise KeyboardInterrupt
    on_ctrl_c(signal.SIGINT, frame)


def _hear_no_more() -> None:
    """`timeout`, and a shell whose terminal goes away, send theirs twice: that asks no more."""
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def stopped_by_interrupt(clients: Senders) -> Iterator[None]:
    """In a loop that `asyncio.run` runs. The first closes the window, and the next gives up what
    is not answered; one more does what it always did.

    In another thread than the main one, which alone hears signals, nothing is changed.
    """
    loop, heard = asyncio.get_running_loop(), (signal.SIGINT, *ENDS)
    before = {number: each for number in heard if callable(each := signal.getsignal(number))}
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    stops = itertools.count(1)

    def interrupted(number: int, frame: FrameType | None) -> None:
        if not clients.counting or next(stops) > MOST_STOPS:
            go_back()
            before[signal.Signals(number)](number, frame)
            return
        if number in ENDS:
            _hear_no_more()
        loop.call_soon_threadsafe(clients.stop)

    def go_back() -> None:
        for number, each in before.items():
            if signal.getsignal(number) is interrupted:
                signal.signal(number, each)

    for number in before:
        signal.signal(number, interrupted)
    try:
        yield
    finally:
        go_back()
