"""The load tester: requests at a given rate, or a given number in flight, and what became of them.

At a rate, each latency counts from the moment when the request was due, not when it was sent: a
slow answer cannot hide by holding back the requests behind it (coordinated omission).
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import grpc
import msgspec
import numpy as np

from packshot.channel import Connection, Tls
from packshot.client import MAX_MESSAGE_BYTES
from packshot.errors import InvalidInput
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub

PERCENTILES = (50, 90, 99, 100)


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`rate` requests a second (open loop), or without it `concurrency` in flight (closed loop).

    `pixels`: the images are raw pixels, not encoded files.
    """

    target: str
    model: str = ""
    rate: float | None = None
    concurrency: int = 16
    seconds: float = 10.0
    images_per_request: int = 1
    timeout_seconds: float = 30.0
    pixels: bool = False

    def __post_init__(self) -> None:
        names = ("rate", "concurrency", "seconds", "images_per_request", "timeout_seconds")
        for name in names:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InvalidInput(f"{name} is {value}; it must be above 0")


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies of the answered requests; `errors` counts the others by status.

    `refusal_ms`: of those refused for overload, from being sent to being refused.

    `image_errors` counts, by reason, the images in answered requests that could not be used.
    """

    plan: LoadPlan
    answered: int
    errors: dict[str, int]
    image_errors: dict[str, int]
    images_per_second: float
    latency_ms: dict[str, float]
    refusal_ms: dict[str, float]


def load_images(names: Sequence[str]) -> list[bytes]:
    """The files to send, in memory. Raises InvalidInput for one that cannot be read."""
    try:
        return [Path(name).read_bytes() for name in names]
    except OSError as error:
        raise InvalidInput(f"{error.filename}: {error.strerror}") from error


def run_load(
    plan: LoadPlan, images: Sequence[bytes], *, tls: Tls | bool = False, token: str | None = None
) -> LoadReport:
    """Runs the plan against a server. Raises InvalidInput for a plan that makes no sense."""
    return asyncio.run(_run(plan, images, Connection(target=plan.target, tls=tls, token=token)))


def report_text(report: LoadReport) -> str:
    """A few lines for a terminal."""
    plan = report.plan
    mode = f"{plan.rate:g} requests/s" if plan.rate else f"{plan.concurrency} requests in flight"
    latencies = "  ".join(f"{name} {ms:.1f}" for name, ms in report.latency_ms.items())
    counted = {**report.errors, **{f"image(s) {k}": v for k, v in report.image_errors.items()}}
    errors = ", ".join(f"{count} {kind}" for kind, count in counted.items()) or "none"
    return (
        f"{mode} of {plan.images_per_request} image(s) for {plan.seconds:g} s to {plan.target}\n"
        f"  answered    {report.answered} requests, {report.images_per_second:.1f} images/s\n"
        f"  latency ms  {latencies or 'no answer'}\n"
        f"  errors      {errors}"
    )


async def _run(plan: LoadPlan, images: Sequence[bytes], connection: Connection) -> LoadReport:
    endless = itertools.cycle(images)
    latencies: list[float] = []
    refusals: list[float] = []
    errors: Counter[str] = Counter()
    image_errors: Counter[str] = Counter()
    options = [("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]
    async with connection.aio_channel(options) as channel:
        stub = ClassifierStub(channel)

        async def send(due: float) -> None:
            chosen = itertools.islice(endless, plan.images_per_request)
            request = pb.ClassifyRequest(
                model=plan.model, images=[_message(one, plan) for one in chosen], top_k=1
            )
            sent = time.perf_counter()
            try:
                reply = await stub.Classify(
                    request, timeout=plan.timeout_seconds, metadata=connection.metadata
                )
                latencies.append(time.perf_counter() - due)
                image_errors.update(r.error.reason for r in reply.results if r.HasField("error"))
            except grpc.aio.AioRpcError as error:
                errors[error.code().name] += 1
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    refusals.append(time.perf_counter() - sent)

        started = time.perf_counter()
        if plan.rate:
            async with asyncio.TaskGroup() as group:
                async for due in _arrivals(plan.rate, started, plan.seconds):
                    group.create_task(send(due))
        else:
            await asyncio.gather(
                *(_repeat(send, started + plan.seconds) for _ in range(plan.concurrency))
            )
        elapsed = time.perf_counter() - started
    return LoadReport(
        plan=plan,
        answered=len(latencies),
        errors=dict(errors),
        image_errors=dict(image_errors),
        images_per_second=(len(latencies) * plan.images_per_request - image_errors.total())
        / elapsed,
        latency_ms=_percentiles(latencies),
        refusal_ms=_percentiles(refusals),
    )


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In milliseconds; empty if there are none."""
    found = np.percentile(np.array(seconds) * 1000, PERCENTILES) if seconds else ()
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=False)}


def _message(image: bytes, plan: LoadPlan) -> pb.Image:
    return pb.Image(pixels=image) if plan.pixels else pb.Image(encoded=image)


async def _arrivals(rate: float, started: float, seconds: float) -> AsyncIterator[float]:
    for number in range(int(rate * seconds)):
        due = started + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield due


async def _repeat(send: Callable[[float], Awaitable[None]], until: float) -> None:
    while (now := time.perf_counter()) < until:
        await send(now)
