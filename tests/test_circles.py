"""What failed is freed at once: no circle keeps it until the garbage collector comes round."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import grpc
import pytest
from fakes import FakeEngine
from schedulers import LATER, instant, run, scheduler_of

from packshot.errors import ImageError, Overloaded
from serving.access_log import AccessLog
from serving.api.answering import answering
from serving.api.calls import Call, Calls
from serving.metrics import Metrics


class Large:
    """Stands for many bytes: it can be looked for."""


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_an_image_that_cannot_be_decoded():
    async def test():
        scheduler = scheduler_of(FakeEngine(), instant(1))
        content = Large()
        freed = weakref.ref(content)

        def damaged(content: Large = content):
            raise ImageError("damaged", "no image")

        with scheduler.admit(images=1, deadline=LATER, encoded=[1]) as ticket:
            try:
                await scheduler.submit(ticket, damaged)
            except ImageError:
                del damaged, content
        await scheduler.close()
        assert freed() is None

    run(test)


class Context:
    """As gRPC has it: the error of an abort is kept, in a circle with its call."""

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def time_remaining(self) -> float:
        return 1.0

    async def abort(self, *_: object) -> None:
        self.error = grpc.aio.AbortError("Locally aborted.")
        raise self.error


def test_a_request_that_is_refused():
    class Service:
        service = "packshot.v1.Classifier"
        calls = Calls(Metrics(), AccessLog(0, Metrics()), None)

        @answering
        async def Classify(self, request: Large, call: Call) -> None:  # noqa: N802
            raise Overloaded("not now")

    async def test():
        request, context = Large(), Context()
        freed = weakref.ref(request)
        try:
            await Service().Classify(request, context)
        except grpc.aio.AbortError:
            del request
        await asyncio.sleep(0)
        assert freed() is None
        assert context.error.__traceback__ is not None

    run(test)
