"""The decode pool: images to pixels in threads, never more waiting in it than it has threads."""

import asyncio
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor

from packshot.errors import ImageError
from packshot.image import ImageLimits, ImageSpec, Pixels, load_pixels
from serving.metrics import Metrics

log = logging.getLogger("packshot.decoding")


class DecodePool:
    """Decodes for all requests. Whoever waits for a free thread can be cancelled at no cost."""

    def __init__(self, threads: int, limits: ImageLimits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._free = asyncio.Semaphore(threads)

    async def decode(self, encoded: bytes, spec: ImageSpec) -> Pixels:
        """Raises ImageError."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        work = self._threads.submit(self._decode, encoded, spec)

        def release(_done: "Future[Pixels]") -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._free.release)

        # The thread is free when its work has ended, not when its caller has lost interest.
        work.add_done_callback(release)
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _decode(self, encoded: bytes, spec: ImageSpec) -> Pixels:
        started = time.monotonic()
        try:
            return load_pixels(encoded, spec, self._limits)
        except ImageError as error:
            log.debug("an image was refused", exc_info=error)
            raise
        finally:
            self._metrics.stage("decode", time.monotonic() - started)
