"""One client process: `python -m packshot.load.sender` sends on time, and counts what comes back.

It is spoken to on standard input and answers on standard output (`packshot.load.messages`).
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc

from packshot.channel import Connection, Tls
from packshot.client import MAX_MESSAGE_BYTES
from packshot.load.arrivals import due_times
from packshot.load.messages import Done, Message, Order, Progress, Ready, Setup, encoded, read
from packshot.load.tally import Recorder, Tally, Window
from packshot.load.wire import WIRES
from packshot.load_plan import MOST_IN_FLIGHT

TELL_SECONDS = 0.5
PAUSE_SECONDS = 0.01  # of a closed loop after an error: a refused client does not storm the server

OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)


class Sender:
    """Requests made in advance, and the connection that they go through, in turn."""

    def __init__(self, setup: Setup) -> None:
        tls = Tls(**setup.tls) if isinstance(setup.tls, dict) else setup.tls
        connection = Connection(target=setup.target, tls=tls, token=setup.token)
        wire = WIRES[setup.api]
        self.channel = connection.aio_channel(OPTIONS)
        self.images_per_request = setup.images_per_request
        self.image_errors = wire.image_errors
        self._call: Any = self.channel.unary_unary(wire.method)
        self._metadata = connection.metadata
        self._requests = itertools.cycle(setup.requests)

    async def exchange(self, timeout_seconds: float) -> bytes:
        """The answer to the next request. Raises AioRpcError."""
        reply: bytes = await self._call(
            next(self._requests), timeout=timeout_seconds, metadata=self._metadata
        )
        return reply


class Run:
    """A sender's part of one run."""

    def __init__(self, sender: Sender, order: Order) -> None:
        opens = order.begin + order.plan.warmup_seconds
        self._window = Window(opens, opens + order.plan.seconds)
        self._recorder = Recorder(self._window, (order.plan.slo_ms or float("inf")) / 1000)
        self._sender = sender
        self._order = order
        self._most_in_flight = -(-MOST_IN_FLIGHT // order.senders)
        self._in_flight = 0

    async def tally(self, tell: Callable[[Message], None]) -> Tally:
        """Of the whole run; tells how it goes, and stops where nobody hears it any more."""
        try:
            async with asyncio.TaskGroup() as group:
                used = group.create_task(_cpu_seconds(self._window))
                telling = group.create_task(self._tell(tell))
                await self._send_all()
                telling.cancel()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return self._recorder.tally(used.result())

    async def _send_all(self) -> None:
        order, end = self._order, self._window.closes
        if order.plan.rate:
            dues = due_times(
                order.plan, order.begin, end, number=order.number, senders=order.senders
            )
            await _open_loop(dues, self._send)
            return
        clients = len(range(order.number, order.plan.concurrency, order.senders))
        await asyncio.gather(*(_closed_loop(order.begin, end, self._send) for _ in range(clients)))

    async def _send(self, due: float) -> bool:
        """Whether it was answered."""
        sent = time.monotonic()
        self._recorder.sent(due, sent)
        left = due + self._order.plan.timeout_seconds - sent
        if left <= 0:
            self._recorder.not_answered(due, "NOT_SENT")
            return False
        if self._in_flight >= self._most_in_flight:
            self._recorder.not_answered(due, "TOO_MANY_IN_FLIGHT")
            return False
        self._in_flight += 1
        try:
            reply = await self._sender.exchange(left)
        except grpc.aio.AioRpcError as error:
            self._recorder.not_answered(due, error.code().name, error.details() or "")
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self._recorder.refused(due, time.monotonic() - sent)
            return False
        finally:
            self._in_flight -= 1
        answered, errors = time.monotonic(), self._sender.image_errors(reply)
        self._recorder.answered(due, answered, self._sender.images_per_request, errors)
        return True

    async def _tell(self, tell: Callable[[Message], None]) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            images, failed = self._recorder.answered_images, self._recorder.failed
            tell(Progress(images=images, failed=failed, in_flight=self._in_flight))


async def _open_loop(dues: Iterable[float], send: Callable[[float], Awaitable[bool]]) -> None:
    async with asyncio.TaskGroup() as group:
        for due in dues:
            await _until(due)
            group.create_task(_ended(send(due)))


async def _closed_loop(begin: float, end: float, send: Callable[[float], Awaitable[bool]]) -> None:
    await _until(begin)
    while (now := time.monotonic()) < end:
        if not await send(now):
            await asyncio.sleep(PAUSE_SECONDS)


async def _ended(sending: Awaitable[bool]) -> None:
    await sending


async def _cpu_seconds(window: Window) -> float:
    """Of this process, while the window is open."""
    await _until(window.opens)
    before = time.process_time()
    await _until(window.closes)
    return time.process_time() - before


async def _until(moment: float) -> None:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))


def _tell_parent(message: Message) -> None:
    sys.stdout.buffer.write(encoded(message))
    sys.stdout.buffer.flush()


def main() -> None:
    setup = read(sys.stdin.buffer)
    if not isinstance(setup, Setup):  # whoever started this is gone
        return
    with asyncio.Runner() as runner:
        sender = runner.run(_opened(setup))
        _tell_parent(Ready())
        while isinstance(order := read(sys.stdin.buffer), Order):
            _tell_parent(Done(runner.run(Run(sender, order).tally(_tell_parent))))
        runner.run(sender.channel.close())


async def _opened(setup: Setup) -> Sender:
    return Sender(setup)  # a channel belongs to the loop on which it is made


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # whoever gave the orders is gone
        sys.stderr.close()
        raise SystemExit(130) from None
