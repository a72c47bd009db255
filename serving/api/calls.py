"""The calls in progress: what each is, and what is told of it when it ends."""

import asyncio
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import grpc

from packshot.errors import Overloaded
from serving.access_log import Access, AccessLog
from serving.admission import RETRY_AFTER_SECONDS
from serving.api.receiving import Context, Receiving
from serving.metrics import Metrics, RpcKind
from serving.model import Model
from serving.request_id import request_id
from serving.stages import Stage

if TYPE_CHECKING:
    from serving.traces import Traces

Request = TypeVar("Request")

STREAM_STAGES = 192  # of 64 images


@dataclass(kw_only=True)
class Call:
    """One RPC. Its handler adds what it answered, and with what."""

    service: str
    method: str
    kind: RpcKind
    context: Context
    peer: str
    started: float
    whole: bool = False  # its only request is here
    images: int = 0
    model: str | None = None
    version: int | None = None
    engine: str | None = None
    stages: list[Stage] = field(default_factory=list)

    @cached_property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return tuple(self.context.invocation_metadata() or ())

    @cached_property
    def request_id(self) -> str:
        """The client's, or one of our own, made when it is first asked for."""
        return request_id(self.metadata)

    @property
    def timeout_seconds(self) -> float | None:
        """What is left of the client's deadline; None if it gave none."""
        seconds: float | None = self.context.time_remaining()
        return seconds

    def received(self, request: Request) -> Request:
        """Its time is ours from now on; until then it was the client's and the line's."""
        self.started = time.monotonic()
        self.whole = True
        return request

    @property
    def late(self) -> bool:
        """Its deadline has passed, and not while its request was still being sent."""
        return self.timeout_seconds == 0 and (self.whole or self.kind != "unary")

    def asks(self, model: Model, images: int) -> None:
        self.model, self.version = model.name, model.version
        self.images += images

    def went_through(self, stages: list[Stage]) -> None:
        """What images of a stream did: only of its first, as it may never end."""
        if len(self.stages) < STREAM_STAGES:
            self.stages += stages

    def milliseconds(self, stage: str) -> float | None:
        """The longest that one of its images was in a stage; None if none was, or in a stream."""
        if self.kind != "unary":
            return None
        spent = [one.ended - one.started for one in self.stages if one.name == stage]
        return round(max(spent) * 1000, 3) if spent else None


class Calls:
    """Counts the calls in progress, so that a drain knows when it is done, and reports their ends.

    `draining` is set when streams should end instead of reading on.
    """

    def __init__(
        self,
        metrics: Metrics,
        access: AccessLog,
        traces: "Traces | None",
        receiving: Receiving,
        *,
        most: int,
    ) -> None:
        """`most`: calls in progress; one more is refused."""
        self.receiving = receiving
        self.in_progress = 0
        self.most = most
        self.draining = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()
        self._metrics = metrics
        self._access = access
        self._traces = traces

    async def none(self) -> None:
        """Until no call is in progress."""
        await self._none.wait()

    def check_room(self) -> None:
        """Raises Overloaded if what was begun last is one too many."""
        if self.in_progress > self.most:
            raise Overloaded(
                f"{self.most} calls are in progress, and no more are taken: try again later",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )

    def begin(self, service: str, method: str, kind: RpcKind, context: Context) -> Call:
        self.in_progress += 1
        self._none.clear()
        self._metrics.rpc_started(service, method, kind)
        # Asked now: gRPC crashes if it is asked for the peer of a stream that was cancelled.
        peer = context.peer()
        return Call(
            service=service, method=method, kind=kind, context=context, peer=peer,
            started=time.monotonic(),
        )  # fmt: skip

    def end(self, call: Call, code: grpc.StatusCode) -> None:
        ended = time.monotonic()
        seconds = ended - call.started
        self._metrics.rpc_handled(call.service, call.method, code.name, seconds, call.kind)
        trace_id = self._trace(call, code, ended) if self._traces else None
        if self._access.has_room(code.name):
            self._access.write(_access(call, code, seconds, trace_id))
        self.in_progress -= 1
        if self.in_progress == 0:
            self._none.set()

    def _trace(self, call: Call, code: grpc.StatusCode, ended: float) -> str | None:
        assert self._traces is not None
        told = {
            "packshot.model": call.model,
            "packshot.version": call.version,
            "packshot.engine": call.engine,
            "packshot.images": call.images,
            "packshot.request_id": call.request_id,
        }
        return self._traces.record(
            f"{call.service}/{call.method}",
            call.metadata,
            call.stages,
            started=call.started,
            ended=ended,
            code=code.name,
            attributes={name: value for name, value in told.items() if value is not None},
        )


def _access(call: Call, code: grpc.StatusCode, seconds: float, trace_id: str | None) -> Access:
    return Access(
        request_id=call.request_id,
        method=call.method,
        code=code.name,
        images=call.images,
        total_ms=round(seconds * 1000, 3),
        peer=call.peer,
        model=call.model,
        version=call.version,
        engine=call.engine,
        decode_ms=call.milliseconds("decode"),
        queue_ms=call.milliseconds("queue"),
        infer_ms=call.milliseconds("infer"),
        trace_id=trace_id,
    )
