"""Wakes those that wait on an event loop, one at a time: an asyncio.Event wakes them all."""

import asyncio
from collections import deque


class Bell:
    """Nothing is remembered: who rings while nobody waits is not heard."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Until it rings for this one: those that came first are woken first."""
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(heard)
        await heard

    def ring_for_one(self) -> None:
        while self._waiting:
            heard = self._waiting.popleft()
            if not heard.done():  # else it was cancelled
                heard.set_result(None)
                return

    def ring_for_all(self) -> None:
        while self._waiting:
            self.ring_for_one()
