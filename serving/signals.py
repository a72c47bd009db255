"""SIGTERM and SIGINT: the first asks the server to drain, a second hurries it."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any


def on_signal(number: signal.Signals, told: Callable[[], None]) -> None:
    """Calls it on the running loop, until `ignore_signals`.

    A handler of the loop's own goes when the loop is closed: what comes after it ends the process.
    """
    loop = asyncio.get_running_loop()
    signal.signal(number, lambda *_: loop.call_soon_threadsafe(told))
    signal.siginterrupt(number, False)  # as the loop's own: no call of a library is interrupted


def ignore_signals() -> None:
    """While the process ends by itself, with the status that is right."""
    # Python's own handlers go before the interpreter has ended; what is ignored stays so.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class StopSignals:
    """Made before models are loaded: a stop that comes meanwhile must not be lost.

    Until then `__main__` hears it.
    """

    def __init__(self) -> None:
        self._first, self._second = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            on_signal(number, self._received)

    @property
    def asked(self) -> bool:
        return self._first.is_set()

    @property
    def hurried(self) -> bool:
        return self._second.is_set()

    async def wait(self) -> None:
        """Until the first signal."""
        await self._first.wait()

    async def wait_for_second(self) -> None:
        await self._second.wait()

    async def sleep(self, seconds: float) -> None:
        """Sleeps, unless hurried."""
        try:
            await asyncio.wait_for(self._second.wait(), seconds)
        except TimeoutError:
            return

    async def run_until(self, work: Coroutine[Any, Any, None]) -> bool:
        """Runs `work`, unless a signal comes first; returns whether it was finished."""
        working, signalled = asyncio.create_task(work), asyncio.create_task(self.wait())
        await asyncio.wait({working, signalled}, return_when=asyncio.FIRST_COMPLETED)
        signalled.cancel()
        if not working.done():
            working.cancel()
            return False
        await working
        return True

    def _received(self) -> None:
        (self._second if self.asked else self._first).set()
