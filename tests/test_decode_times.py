"""How long decoding is expected to take, by the size of the file."""

import asyncio

import numpy as np
import pytest
from fakes import Clock, FakeEngine, image_of
from schedulers import ask, entered, run, timed
from tiny import jpeg

from packshot.errors import Overloaded
from packshot.image import ImageLimits, ImageSpec
from serving.decoding import DecodePool
from serving.latency import DecodeTimes
from serving.scheduler import Scheduler

LIMITS = ImageLimits(max_bytes=1 << 24, max_pixels=1 << 24)
SMALL, LARGE = 150_000, 9_000_000


def test_small_and_large_files_are_told_apart():
    times = DecodeTimes()
    assert times.seconds(SMALL) == 0.0
    for _ in range(20):
        times.observe(SMALL, 0.002)
        times.observe(LARGE, 0.4)
    assert times.seconds(SMALL) == times.seconds(SMALL + 9) == pytest.approx(0.002)
    assert times.seconds(LARGE) == pytest.approx(0.4, rel=0.1)
    assert times.seconds(0) == 0.0  # pixels


def test_a_size_that_was_not_seen_is_expected_to_take_no_longer_than_the_nearest():
    times = DecodeTimes()
    times.observe(1000, 0.004)
    assert times.seconds(LARGE) == pytest.approx(0.004)
    assert times.seconds(500) == pytest.approx(0.002)


def test_one_disturbed_image_is_not_taken_for_what_its_size_takes():
    times = DecodeTimes()
    times.observe(1000, 0.004)
    times.observe(2000, 60.0)  # the first of its size
    assert times.seconds(2000) == pytest.approx(2 * 0.004)
    times.observe(1000, 60.0)
    assert times.seconds(1000) == pytest.approx(0.004 * 1.3)


def photo(scheduler: Scheduler, clock: Clock, size: int, seconds: float, deadline: float):
    """A request of one file that takes so long to decode."""

    def decode() -> np.ndarray:
        clock.now += seconds
        return image_of(0)

    async def request() -> None:
        with scheduler.admit(images=1, deadline=deadline, encoded=[size]) as ticket:
            await scheduler.submit(ticket, decode, file_size=size)

    return request()


def test_a_large_image_is_refused_where_small_ones_are_in_time():
    async def test():
        engine, clock = FakeEngine(), Clock()
        scheduler = timed(engine, {1: 0.1}, clock)
        for size, seconds in [(SMALL, 0.01), (LARGE, 0.6)] * 5:
            await photo(scheduler, clock, size, seconds, clock.now + 9)
        engine.gate.clear()
        busy = asyncio.create_task(ask(scheduler, 1, clock.now + 99))
        await entered(engine)
        with pytest.raises(Overloaded, match="would take"):
            await photo(scheduler, clock, LARGE, 0.6, clock.now + 0.5)
        small = asyncio.create_task(photo(scheduler, clock, SMALL, 0.01, clock.now + 0.5))
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(busy, small)
        await scheduler.close()

    run(test)


def test_the_pool_predicts_by_what_its_threads_share():
    async def test():
        pool, file = DecodePool(2, LIMITS), jpeg((200, 20, 20))
        assert pool.predict_seconds([len(file)]) == 0.0
        await pool.decode(file, ImageSpec())
        one = pool.predict_seconds([len(file)])
        assert 0.0 < one == pool.predict_seconds([len(file)] * 2)
        assert pool.predict_seconds([len(file)] * 4) == pytest.approx(2 * one)
        assert pool.predict_seconds([]) == 0.0
        pool.close()

    run(test)
