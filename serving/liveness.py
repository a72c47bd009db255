"""Is the process worth keeping? A hung event loop or a stuck engine needs a restart; load does not.

The answer is given from any thread, so that it is there even when the loop hangs.
"""

import asyncio
import time
from collections.abc import Callable

BEATS = 5  # in the time after which the loop counts as hung


class Liveness:
    """Watches the loop that `start` was called on, and asks `check`, from whichever thread.

    `check`: None if all is well, else what is wrong.
    """

    def __init__(
        self,
        check: Callable[[], str | None],
        *,
        hang_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._check = check
        self._hang_seconds = hang_seconds
        self._clock = clock
        self._last_beat: float | None = None
        self._beating: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to watch the running loop."""
        self._last_beat = self._clock()
        self._beating = asyncio.create_task(self._beat())

    def stop(self) -> None:
        """Ends watching the loop: one that is being closed is not hung."""
        if self._beating is not None:
            self._beating.cancel()
        self._last_beat = None

    def reason(self) -> str | None:
        """Why the process should be restarted, in one line; None if it should not."""
        return self._loop_hangs() or self._check()

    def _loop_hangs(self) -> str | None:
        last_beat, now = self._last_beat, self._clock()
        if last_beat is None or now - last_beat <= self._hang_seconds:
            return None
        return f"the event loop has been stuck for {now - last_beat:.1f} s"

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._hang_seconds / BEATS)
            self._last_beat = self._clock()
