"""Messages are read while there is memory for them."""

import asyncio

import grpc
import pytest
from schedulers import run

from packshot.errors import InvalidInput, Overloaded, Unavailable
from serving.api.receiving import LARGE_BYTES, LOOK_SECONDS, Receiving
from serving.memory import Memory
from serving.metrics import Metrics

MOST = 12345


class FakeMemory(Memory):
    """As short as the test says."""

    short = False
    most_bytes = MOST

    def __init__(self) -> None:
        super().__init__(1 << 50)


class Context:
    """A call of which each message comes when the test sends it; what aborts it ends its read."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[object] = asyncio.Queue()
        self.aborted: grpc.StatusCode | None = None
        self.details = ""

    async def read(self) -> object:
        message = await self.came.get()
        if isinstance(message, grpc.aio.AbortError):
            raise message
        return message

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.aborted, self.details = code, details
        error = grpc.aio.AbortError("Locally aborted.")
        self.came.put_nowait(error)
        raise error


class Large(Context):
    """Its message is parsed in its reader's task, as gRPC does."""

    def __init__(self) -> None:
        super().__init__()
        self.came.put_nowait(None)

    async def read(self) -> object:
        await super().read()
        return self.parse()


def refusals(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("packshot_short_of_memory_total")


def test_a_request_and_a_stream_are_read():
    async def test():
        receiving, context = Receiving(FakeMemory(), Metrics()), Context()
        for message in ("one", "two", "three", grpc.aio.EOF):
            context.came.put_nowait(message)
        assert await receiving.request(context) == "one"
        assert [message async for message in receiving.messages(context)] == ["two", "three"]

    run(test)


def test_a_call_that_ends_without_a_message_is_told():
    async def test():
        receiving, context = Receiving(FakeMemory(), Metrics()), Context()
        context.came.put_nowait(grpc.aio.EOF)
        with pytest.raises(InvalidInput, match="without its message"):
            await receiving.request(context)

    run(test)


def test_a_message_that_does_not_come_is_waited_for_so_long_only():
    async def test():
        receiving, context = Receiving(FakeMemory(), Metrics()), Context()
        reading = asyncio.create_task(receiving.request(context, small=True, seconds=0.01))
        await asyncio.sleep(0)
        assert receiving.reading
        with pytest.raises(grpc.aio.AbortError):
            await reading
        assert (context.aborted, receiving.reading) == (grpc.StatusCode.INVALID_ARGUMENT, False)
        assert "no message came within 0.01 s" in context.details

    run(test)


def test_what_stands_in_the_place_of_a_message_is_raised():
    async def test():
        receiving, context = Receiving(FakeMemory(), Metrics()), Context()
        context.came.put_nowait(InvalidInput("no message"))
        with pytest.raises(InvalidInput, match="no message"):
            await receiving.request(context)

    run(test)


def test_nothing_is_read_while_memory_is_short():
    async def test():
        memory, metrics, context = FakeMemory(), Metrics(), Context()
        receiving = Receiving(memory, metrics)
        context.came.put_nowait("a request")
        memory.short = True
        with pytest.raises(Overloaded, match=f"uses {MOST} bytes of memory or more"):
            await receiving.request(context)
        assert refusals(metrics) == 1
        memory.short = False
        await asyncio.sleep(2 * LOOK_SECONDS)  # nothing is read: it looks when it is asked
        assert await receiving.request(context) == "a request"

    run(test)


def test_a_stream_waits_until_there_is_memory():
    async def test():
        memory, metrics, context = FakeMemory(), Metrics(), Context()
        stream = Receiving(memory, metrics).messages(context)
        context.came.put_nowait("one")
        memory.short = True
        coming = asyncio.create_task(anext(stream))
        await asyncio.sleep(2 * LOOK_SECONDS)
        assert (coming.done(), context.came.qsize()) == (False, 1)
        memory.short = False
        assert (await coming, refusals(metrics)) == ("one", 0)

    run(test)


def test_the_newest_reads_are_ended_first_and_none_is_cancelled():
    async def test():
        memory, metrics = FakeMemory(), Metrics()
        receiving = Receiving(memory, metrics)
        contexts = [Context() for _ in range(4)]
        reads = [asyncio.create_task(receiving.request(context)) for context in contexts]
        await asyncio.sleep(0)
        memory.short = True
        await asyncio.wait(reads[2:])
        contexts[0].came.put_nowait("the first")
        assert await reads[0] == "the first"
        await asyncio.wait(reads)
        for context, read in list(zip(contexts, reads, strict=True))[1:]:
            assert isinstance(read.exception(), grpc.aio.AbortError)
            assert context.aborted is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "try again later" in context.details
        assert refusals(metrics) == 3

    run(test)


def test_streams_are_ended_last_and_only_if_uploads_alone_hold_memory():
    async def test():
        memory, metrics, idle = FakeMemory(), Metrics(), False
        receiving = Receiving(memory, metrics, idle=lambda: idle)
        streams, upload = [Context(), Context()], Context()
        reads = [asyncio.create_task(anext(receiving.messages(one))) for one in streams]
        reads.append(asyncio.create_task(receiving.request(upload)))
        await asyncio.sleep(0)
        memory.short = True
        await asyncio.gather(*reads[2:], return_exceptions=True)
        await asyncio.sleep(3 * LOOK_SECONDS)
        assert [one.aborted for one in streams] == [None, None]
        idle = True
        await asyncio.gather(*reads, return_exceptions=True)
        assert {one.aborted for one in streams} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert refusals(metrics) == 3

    run(test)


def test_once_closed_no_request_is_read_and_none_that_was_begun():
    async def test():
        receiving = Receiving(FakeMemory(), Metrics())
        upload, stream = Context(), Context()
        reading = asyncio.create_task(receiving.request(upload))
        streaming = asyncio.create_task(anext(receiving.messages(stream)))
        await asyncio.sleep(0)
        receiving.close()
        with pytest.raises(grpc.aio.AbortError):
            await reading
        assert upload.aborted is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(Unavailable):
            await receiving.request(Context())
        stream.came.put_nowait("one")  # streams end by themselves
        assert await streaming == "one"

    run(test)


def test_a_large_message_of_a_stream_is_parsed_as_it_is_the_only_one():
    async def test():
        memory = FakeMemory()
        receiving = Receiving(memory, Metrics(), idle=lambda: False)
        memory.short = True
        assert receiving.parsed(bytes(LARGE_BYTES + 1), len) == LARGE_BYTES + 1

    run(test)


def test_a_large_message_is_not_parsed_if_memory_is_short_by_then():
    async def test():
        memory, metrics, large, small = FakeMemory(), Metrics(), Large(), Large()
        receiving = Receiving(memory, metrics)
        large.parse = lambda: receiving.parsed(bytes(LARGE_BYTES + 1), len)
        small.parse = lambda: receiving.parsed(bytes(LARGE_BYTES), len)  # not worth a look
        assert await receiving.request(large) == LARGE_BYTES + 1
        reads = [asyncio.create_task(receiving.request(one)) for one in (small, large)]
        await asyncio.sleep(0)  # both have been let in
        memory.short = True
        large.came.put_nowait(None)
        small.came.put_nowait(None)
        assert await reads[0] == LARGE_BYTES
        with pytest.raises(Overloaded):
            await reads[1]
        assert refusals(metrics) == 1

    run(test)


def test_a_call_that_is_gone_when_it_is_to_be_ended_is_no_error():
    class Gone(Context):
        async def abort(self, *_: object) -> None:
            self.came.put_nowait(grpc.aio.EOF)
            raise RuntimeError("execute_batch failed")

    async def test():
        memory, context = FakeMemory(), Gone()
        receiving = Receiving(memory, Metrics())
        reading = asyncio.create_task(receiving.request(context))
        await asyncio.sleep(0)
        memory.short = True
        with pytest.raises(InvalidInput):
            await reading

    run(test)
