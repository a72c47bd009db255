"""The decode pool: images to pixels in threads, never more waiting in it than it has threads."""

import asyncio
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor

from packshot.errors import ImageError
from packshot.image import ImageLimits, ImageSpec, Pixels, load_pixels
from serving.latency import Average
from serving.metrics import Metrics

log = logging.getLogger("packshot.decoding")


class DecodePool:
    """Decodes for all requests. Whoever waits for a free thread can be cancelled at no cost."""

    def __init__(self, threads: int, limits: ImageLimits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._free = asyncio.Semaphore(threads)
        self._width = threads
        self._pending = 0
        self._seconds = Average()

    def predict_seconds(self, images: int) -> float:
        """Until as many more images would be decoded, behind those that are waiting."""
        if images == 0:
            return 0.0
        return max(1.0, (self._pending + images) / self._width) * self._seconds.value

    async def decode(self, encoded: bytes, spec: ImageSpec) -> Pixels:
        """Raises ImageError."""
        self._pending += 1
        try:
            pixels, seconds = await self._in_a_thread(encoded, spec)
        finally:
            self._pending -= 1
        self._seconds.observe(seconds)
        return pixels

    async def _in_a_thread(self, encoded: bytes, spec: ImageSpec) -> tuple[Pixels, float]:
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        work = self._threads.submit(self._decode, encoded, spec)

        def release(_done: "Future[tuple[Pixels, float]]") -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._free.release)

        # The thread is free when its work has ended, not when its caller has lost interest.
        work.add_done_callback(release)
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decode(self, encoded: bytes, spec: ImageSpec) -> tuple[Pixels, float]:
        started = time.monotonic()
        try:
            pixels = load_pixels(encoded, spec, self._limits)
            return pixels, time.monotonic() - started
        except ImageError as error:
            log.debug("an image was refused", exc_info=error)
            raise
        finally:
            self._metrics.stage("decode", time.monotonic() - started)
