"""Threads that the event loop hands work to, and that wake it once for each piece."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Threads:
    """Like an executor, for one event loop (docs/decisions.md).

    An executor's future wakes the loop for itself and again for whoever counts free threads; and
    its threads are joined when Python ends, so that one that hangs would hold that up for ever.
    """

    def __init__(self, count: int, name: str) -> None:
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[..., T], *arguments: Any, ended: Callable[[], None]) -> T:
        """What `work` returns or raises; an Exception only.

        `ended` is called on the loop when the thread is free again, which may be after the caller
        has lost interest and was cancelled.
        """
        job = _Job(partial(work, *arguments), ended)
        self._jobs.put(job)
        return await job.answer

    def close(self) -> None:
        """Ends the threads, each after what it is doing."""
        for _ in self._threads:
            self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # with what it worked on


class _Job(Generic[T]):
    """Made and told of on the event loop, run in a thread."""

    def __init__(self, work: Callable[[], T], ended: Callable[[], None]) -> None:
        self.answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._work = work
        self._ended = ended

    def run(self) -> None:
        loop = self.answer.get_loop()
        result, failed = None, None
        try:
            result = self._work()
        except Exception as error:
            failed = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._tell, result, failed)
        del result, failed  # an error holds this frame: not the frame the error, too

    def _tell(self, result: T | None, error: Exception | None) -> None:
        self._ended()
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(result)  # type: ignore[arg-type]  # without an error it is a T
