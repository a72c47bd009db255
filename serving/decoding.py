"""The decode pool: images to pixels in threads, never more waiting in it than it has threads."""

import asyncio
import logging
import time
from collections.abc import Sequence

from packshot.errors import ImageError
from packshot.image import ImageLimits, ImageSpec, Pixels, load_pixels
from serving.latency import DecodeTimes
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
        self._pending_seconds = 0.0
        self._times = DecodeTimes()
        self.utilisation = Utilisation(threads)

    def predict_seconds(self, sizes: Sequence[int]) -> float:
        """Until more images, of so many bytes each, would be decoded, behind those that wait."""
        own = [self._times.seconds(size) for size in sizes]
        return max([*own, (self._pending_seconds + sum(own)) / self._width]) if own else 0.0

    async def decode(self, encoded: bytes, spec: ImageSpec) -> tuple[Pixels, Stage]:
        """The picture, and when it was decoded. Raises ImageError."""
        size = len(encoded)
        expected = self._times.seconds(size)
        self._pending_seconds += expected
        try:
            await self._free.acquire()
            self.utilisation.add(1)
            pixels, stage = await self._threads.run(
                self._decode, encoded, spec, ended=self._release
            )
        finally:
            self._pending_seconds -= expected
        self._times.observe(size, stage.ended - stage.started)
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
