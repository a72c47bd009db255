"""One client process: `python -m packshot.load.sender` sends on time, and counts what comes back.

It is spoken to on standard input and answers on standard output (`packshot.load.messages`).
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from io import FileIO
from typing import Any

import grpc

from packshot.channel import Connection, Tls
from packshot.client import MAX_MESSAGE_BYTES
from packshot.load.arrivals import due_times
from packshot.load.messages import (
    Done,
    GiveUp,
    Message,
    Order,
    Progress,
    Ready,
    Setup,
    Stop,
    encoded,
    read,
)
from packshot.load.tally import GIVEN_UP, NOT_SENT, Recorder, Tally, Window
from packshot.load.wire import WIRES
from packshot.load_plan import MOST_IN_FLIGHT

TELL_SECONDS = 0.5
LOOK_SECONDS = 0.1  # at least so often: has the window been closed?
PULSE_SECONDS = 0.02
TOO_LARGE = "message larger than max"  # in gRPC's own words, by which alone it can be told
PAUSE_SECONDS = 0.01  # of a closed loop after an error: a refused client does not storm the server

OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # By default a server that is back is tried again after 1 s to two minutes: its outage would
    # look longer than it was. How long it may take to connect stays gRPC's own choice, 20 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),
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
        window = Window(opens, opens + order.plan.seconds)
        self._recorder = Recorder(window, order.plan.in_time_seconds)
        self._sender = sender
        self._order = order
        self._most_in_flight = -(-MOST_IN_FLIGHT // order.senders)
        self._waiting: set[asyncio.Task[Any] | None] = set()  # each for an answer
        self._given_up = False

    async def tally(self, tell: Callable[[Message], None]) -> Tally:
        """Of the whole run; tells how it goes, and stops where nobody hears it any more."""
        try:
            async with asyncio.TaskGroup() as group:
                used = group.create_task(self._cpu_seconds())
                telling = group.create_task(self._tell(tell))
                group.create_task(self._pulse())
                await self._send_all()
                telling.cancel()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return self._recorder.tally(used.result())

    def stop(self, at: float) -> None:
        """Nothing is sent any more; the window ends there, or now if that has passed, as what was
        due until now is counted. What was sent is waited for.
        """
        window = self._recorder.window
        closes = min(max(at, time.monotonic()), window.closes)
        self._recorder.window = window._replace(closes=closes)

    def give_up(self) -> None:
        """What is not answered yet counts as that."""
        self._given_up = True
        for task in self._waiting:
            assert task is not None
            task.cancel()

    async def _send_all(self) -> None:
        order, end = self._order, self._recorder.window.closes
        if order.plan.rate:
            dues = due_times(
                order.plan, order.begin, end, number=order.number, senders=order.senders
            )
            await self._open_loop(dues)
            return
        clients = len(range(order.number, order.plan.concurrency, order.senders))
        await asyncio.gather(*(self._closed_loop() for _ in range(clients)))

    async def _open_loop(self, dues: Iterator[float]) -> None:
        async with asyncio.TaskGroup() as group:
            for due in dues:
                if self._is_over():
                    self._recorder.never_sent(itertools.chain((due,), dues), self._unsent)
                    return
                if not await self._comes(due):
                    return
                group.create_task(self._send_late(due))

    async def _closed_loop(self) -> None:
        await self._comes(self._order.begin)
        while await self._comes(now := time.monotonic()):
            if not await self._send(now):
                await asyncio.sleep(PAUSE_SECONDS)

    async def _comes(self, moment: float) -> bool:
        """Waits for it: False if the window closes before."""
        while (left := moment - time.monotonic()) > LOOK_SECONDS:
            await asyncio.sleep(LOOK_SECONDS)
            if time.monotonic() >= self._recorder.window.closes:
                return False
        await asyncio.sleep(max(0.0, left))  # if it has passed too: answers are read meanwhile
        return moment < self._recorder.window.closes

    def _is_over(self) -> bool:
        """Whether the deadline of all that was due has passed, or nobody waits for it."""
        closes = self._recorder.window.closes
        return self._given_up or time.monotonic() >= closes + self._order.plan.timeout_seconds

    @property
    def _unsent(self) -> str:
        """Why something is not sent any more."""
        return GIVEN_UP if self._given_up else NOT_SENT

    async def _send_late(self, due: float) -> None:
        self._recorder.late(due, time.monotonic() - due)
        await self._send(due)

    async def _send(self, due: float) -> bool:
        """Whether it was answered."""
        sent = time.monotonic()
        self._recorder.sent(due)
        left = due + self._order.plan.timeout_seconds - sent
        if left <= 0 or self._given_up:
            self._recorder.not_answered(due, self._unsent)
            return False
        if len(self._waiting) >= self._most_in_flight:
            self._recorder.not_answered(due, "TOO_MANY_IN_FLIGHT")
            return False
        self._waiting.add(task := asyncio.current_task())
        try:
            reply = await self._sender.exchange(left)
        except grpc.aio.AioRpcError as error:
            status, details = error.code().name, error.details() or ""
            if TOO_LARGE in details:
                status = "MESSAGE_TOO_LARGE"
            if status == "RESOURCE_EXHAUSTED":
                self._recorder.refused(due, time.monotonic() - sent)
            self._recorder.not_answered(due, status, details)
            return False
        except asyncio.CancelledError:
            if not self._given_up or task is None:
                raise
            task.uncancel()
            self._recorder.not_answered(due, GIVEN_UP)
            return False
        finally:
            self._waiting.discard(task)
        answered, errors = time.monotonic(), self._sender.image_errors(reply)
        self._recorder.answered(due, answered, self._sender.images_per_request, errors)
        return True

    async def _tell(self, tell: Callable[[Message], None]) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            images, failed = self._recorder.answered_images, self._recorder.failed
            tell(Progress(images=images, failed=failed, in_flight=len(self._waiting)))

    async def _pulse(self) -> None:
        """A closed loop has no requests that can be late: whether this process is shows here."""
        if self._order.plan.rate:
            return
        for beat in itertools.count():
            due = self._order.begin + beat * PULSE_SECONDS
            if not await self._comes(due):
                return
            self._recorder.late(due, time.monotonic() - due)

    async def _cpu_seconds(self) -> float:
        """Of this process, while the window is open."""
        window = self._recorder.window
        await self._comes(window.opens)
        before = time.process_time()
        await self._comes(window.closes)
        return time.process_time() - before


def _tell_parent(message: Message) -> None:
    sys.stdout.buffer.write(encoded(message))
    sys.stdout.buffer.flush()


def main() -> None:
    orders = FileIO(0, closefd=False)  # standard input, which Python itself would buffer
    setup = read(orders)
    if not isinstance(setup, Setup):  # whoever started this is gone
        return
    with asyncio.Runner() as runner:
        sender = runner.run(_opened(setup))
        _tell_parent(Ready())
        while isinstance(order := read(orders), Order):
            _tell_parent(Done(runner.run(_obeyed(sender, order, orders))))
        runner.run(sender.channel.close())


async def _obeyed(sender: Sender, order: Order, orders: FileIO) -> Tally:
    """Until it is done. Meanwhile it may be told to send no more, and then to wait no more."""
    run, loop = Run(sender, order), asyncio.get_running_loop()

    def hear() -> None:
        match read(orders):
            case Stop() as stop:
                run.stop(stop.at)
            case GiveUp():
                run.give_up()
            case _:  # whoever gave the order is gone, which shows when something is told
                loop.remove_reader(orders)

    loop.add_reader(orders, hear)
    try:
        return await run.tally(_tell_parent)
    finally:
        loop.remove_reader(orders)


async def _opened(setup: Setup) -> Sender:
    return Sender(setup)  # a channel belongs to the loop on which it is made


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # whoever gave the orders is gone
        sys.stderr.close()
        raise SystemExit(130) from None
