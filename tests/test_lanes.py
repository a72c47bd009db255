"""What a lane of an engine is doing, and for how long."""

import asyncio

import numpy as np
from fakes import Clock, FakeEngine, image_of

from serving.lanes import Lanes


def test_a_batch_of_slow_images_does_not_hang_but_one_endless_image_does():
    """The watchdog goes by what takes longest by itself: a large batch of photographs is normal."""

    async def main() -> None:
        clock, engine, seen = Clock(), FakeEngine(), []
        lanes = Lanes(engine, clock)

        def slow() -> np.ndarray:
            clock.now += 20
            seen.append(lanes.longest_run())
            return image_of(1)

        assert lanes.longest_run() == 0
        outcome = await lanes.run([slow, slow, slow], alone=False)
        assert len(outcome.answers) == 3
        assert seen == [20, 20, 20]
        engine.gate.clear()
        running = asyncio.create_task(lanes.run([slow], alone=False))
        for _ in range(2):
            await asyncio.to_thread(engine.entered.acquire)
        assert lanes.longest_run() == 0, "the run has only begun"
        clock.now += 42
        assert lanes.longest_run() == 42
        engine.gate.set()
        await running
        await lanes.close()

    asyncio.run(asyncio.wait_for(main(), 60))
