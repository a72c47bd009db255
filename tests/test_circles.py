"""What failed is freed at once: no circle keeps it until the garbage collector comes round."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import grpc
import pytest
from fakes import FakeEngine
from schedulers import LATER, calls_of, instant, run, scheduler_of

from packshot.errors import ImageError, Overloaded
from serving.api.answering import answering
from serving.api.calls import Call
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
            try:
                raise OSError("not a picture")
            except OSError as error:
                raise ImageError("damaged", "no image") from error

        with scheduler.admit(images=1, deadline=LATER, encoded=[1]) as ticket:
            try:
                await scheduler.submit(ticket, damaged)
            except ImageError:
                del damaged, content
        await scheduler.close()
        assert freed() is None

    run(test)


class Context:
    """As gRPC has it: the error of an abort is kept with its call, beside what was read of it."""

    def __init__(self, request: Large) -> None:
        self._request: Large | None = request

    async def read(self) -> Large:
        request, self._request = self._request, None
        assert request is not None
        return request

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def time_remaining(self) -> float:
        return 1.0

    def abort(self, *_: object) -> "asyncio.Future[None]":
        """No frame of Python's is in it."""
        self.error = grpc.aio.AbortError("Locally aborted.")
        aborting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        aborting.set_exception(self.error)
        return aborting


def test_a_request_that_is_refused():
    class Service:
        service = "packshot.v1.Classifier"
        calls = calls_of(Metrics())

        @answering
        async def Classify(self, request: Large, call: Call) -> None:  # noqa: N802
            raise Overloaded("not now")

    async def test():
        request = Large()
        context = Context(request)
        freed = weakref.ref(request), weakref.ref(context)
        try:
            await Service().Classify(iter(()), context)
        except grpc.aio.AbortError:
            del request, context
        await asyncio.sleep(0)
        assert [one() for one in freed] == [None, None]

    run(test)
