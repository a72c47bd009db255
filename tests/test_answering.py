"""How a call ends: what the adapter does with gRPC's own failures."""

import asyncio

import grpc
import pytest
from schedulers import calls_of

from packshot.errors import Overloaded
from serving.api.answering import answering
from serving.metrics import Metrics


class Context:
    """Of a call that ends as `abort` does."""

    def __init__(self, abort: Exception) -> None:
        self._abort = abort

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self) -> tuple:
        return ()

    def time_remaining(self) -> None:
        return None

    async def read(self) -> object:
        return object()

    async def abort(self, *_: object) -> None:
        raise self._abort


class Full:
    """A service that refuses everything."""

    service = "packshot.v1.Test"

    def __init__(self) -> None:
        metrics = Metrics()
        self.calls = calls_of(metrics)

    @answering
    async def Call(self, request: object, call: object) -> None:  # noqa: N802
        raise Overloaded("no room")


@pytest.mark.parametrize(
    ("failure", "ending"),
    [
        (RuntimeError("execute_batch failed"), asyncio.CancelledError),
        (grpc.aio.AbortError("aborted"), grpc.aio.AbortError),
    ],
)
def test_a_caller_that_went_before_it_was_refused_is_a_cancelled_call(failure, ending):
    async def call() -> Full:
        full = Full()
        with pytest.raises(ending):
            await full.Call(iter(()), Context(failure))
        return full

    assert asyncio.run(call()).calls.in_progress == 0
