"""The decode pool: images to pixels in threads, never more waiting in it than it has threads."""

import asyncio
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor

from packshot.errors import ImageError
from packshot.image import ImageLimits, ImageSpec, Pixels, load_pixels
from serving.latency import Average
from serving.saturation import Utilisation
from serving.stages import Stage

log = logging.getLogger("packshot.decoding")


class DecodePool:
    """Decodes for all requests. Whoever waits for a free thread can be cancelled at no cost."""

    def __init__(self, threads: int, limits: ImageLimits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._free = asyncio.Semaphore(threads)
        self._width = threads
        self._pending = 0
        self._seconds = Average()
        self.utilisation = Utilisation(threads)

    def predict_seconds(self, images: int) -> float:
        """Until as many more images would be decoded, behind those that are waiting."""
        if images == 0:
            return 0.0
        return max(1.0, (self._pending + images) / self._width) * self._seconds.value

    async def decode(self, encoded: bytes, spec: ImageSpec) -> tuple[Pixels, Stage]:
        """The picture, and when it was decoded. Raises ImageError."""
        self._pending += 1
        try:
            pixels, stage = await self._in_a_thread(encoded, spec)
        finally:
            self._pending -= 1
        self._seconds.observe(stage.ended - stage.started)
        return pixels, stage

    async def _in_a_thread(self, encoded: bytes, spec: ImageSpec) -> tuple[Pixels, Stage]:
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        self.utilisation.add(1)
        work = self._threads.submit(self._decode, encoded, spec)

        def release(_done: "Future[tuple[Pixels, Stage]]") -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._release)

        # The thread is free when its work has ended, not when its caller has lost interest.
        work.add_done_callback(release)
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _release(self) -> None:
        self.utilisation.add(-1)
        self._free.release()

    def _decode(self, encoded: bytes, spec: ImageSpec) -> tuple[Pixels, Stage]:
        started = time.monotonic()
        try:
            pixels = load_pixels(encoded, spec, self._limits)
        except ImageError as error:
            log.debug("an image was refused", exc_info=error)
            raise
        return pixels, Stage("decode", started, time.monotonic())
