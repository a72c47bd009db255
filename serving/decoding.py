"""The decode pool: images to pixels in threads, never more waiting in it than it has threads."""

import asyncio
import logging
import time

from packshot.errors import ImageError
from packshot.image import ImageLimits, ImageSpec, Pixels, load_pixels
from serving.latency import Average
from serving.saturation import Utilisation
from serving.stages import Stage
from serving.threads import Threads

log = logging.getLogger("packshot.decoding")


class DecodePool:
    """Decodes for all requests. Whoever waits for a free thread can be cancelled at no cost."""

    def __init__(self, threads: int, limits: ImageLimits) -> None:
        self._limits = limits
        self._threads = Threads(threads, "decode")
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
            await self._free.acquire()
            self.utilisation.add(1)
            pixels, stage = await self._threads.run(
                self._decode, encoded, spec, ended=self._release
            )
        finally:
            self._pending -= 1
        self._seconds.observe(stage.ended - stage.started)
        return pixels, stage

    def close(self) -> None:
        self._threads.close()

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
