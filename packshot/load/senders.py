"""The client processes of a load test: started, given their orders, and heard until they end."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from packshot.channel import Connection, Tls
from packshot.errors import InvalidInput, ServiceFailed
from packshot.load.messages import (
    LENGTH,
    Done,
    GiveUp,
    Message,
    Order,
    Progress,
    Ready,
    Setup,
    Stop,
    decoded,
    encoded,
)
from packshot.load.observed import ServerWindow, between, read_metrics
from packshot.load.report import Doubt, LoadReport, report_of
from packshot.load.tally import SLICES, Tally, Window, merged
from packshot.load.wire import requests_of
from packshot.load_plan import LoadPlan

HEAD_START_SECONDS = 0.05  # for orders to arrive before the first request is due
STOP_SECONDS = 5.0
# Of gRPC's sockets, as the server has it: takes less of the CPU that may be the server's too.
POLLING = {"GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener"}


class State(NamedTuple):
    """How a run goes, for somebody who watches it."""

    plan: LoadPlan
    seconds: float
    images: int
    failed: int
    in_flight: int
    stopping: bool = False
    """Nothing is sent any more; answers are waited for."""


Watcher = Callable[[State], None]


class Source(NamedTuple):
    """The server's own figures: where, and of which model."""

    url: str
    model: str


@dataclass
class Course:
    """A run while it runs; its window closes `stopped_at`, if that is told."""

    window: Window
    stopped_at: float | None = None
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    given_up: bool = False


class Senders:
    """Runs plans one after the other, over the same connections."""

    def __init__(
        self, processes: "list[asyncio.subprocess.Process]", source: Source | None, watch: Watcher
    ) -> None:
        self._processes = processes
        self._source = source
        self._watch = watch
        self._course: Course | None = None

    async def run(self, plan: LoadPlan) -> LoadReport:
        """Raises ServiceFailed if a client process ends before its time."""
        begin = time.monotonic() + HEAD_START_SECONDS
        opens = begin + plan.warmup_seconds
        course = self._course = Course(Window(opens, opens + plan.seconds))
        latest: dict[int, Progress] = {}

        def heard(number: int, progress: Progress) -> None:
            latest[number] = progress
            state = _state(plan, time.monotonic() - begin, list(latest.values()))
            self._watch(state._replace(stopping=course.stopped.is_set()))

        processes = self._processes[: plan.client_processes]
        orders = [
            Order(plan=plan, number=number, senders=len(processes), begin=begin)
            for number in range(len(processes))
        ]
        try:
            async with asyncio.TaskGroup() as group:
                observing = group.create_task(self._observe(course))
                running = [
                    group.create_task(_ordered(process, order, heard))
                    for process, order in zip(processes, orders, strict=True)
                ]
        except ExceptionGroup as group_of_one:  # the first to fail cancels the others
            raise group_of_one.exceptions[0] from None
        finally:
            self._course = None
        tally = merged(task.result() for task in running)
        stopped_after = None if course.stopped_at is None else course.stopped_at - opens
        server = self._believed(observing.result(), tally)
        return report_of(plan, tally, server, stopped_after=stopped_after)

    @property
    def counting(self) -> bool:
        """Whether a run's window has opened: `stop` then leaves something to report."""
        course = self._course
        if course is None or course.given_up:
            return False
        return time.monotonic() >= course.window.opens

    def stop(self) -> None:
        """Closes the window of the run, which then ends with the answers that are still out; if it
        is closed, these are given up, and count as not answered.
        """
        course, now = self._course, time.monotonic()
        if course is None:
            return
        if course.stopped.is_set() or not course.window.holds(now):
            course.given_up = True
            self._tell_all(GiveUp())
            return
        # A moment ahead, so that all clients can hear of it before.
        course.stopped_at = min(now + HEAD_START_SECONDS, course.window.closes)
        course.stopped.set()
        self._tell_all(Stop(at=course.stopped_at))

    def _tell_all(self, message: Message) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(encoded(message))

    async def _observe(self, course: Course) -> ServerWindow | Doubt | None:
        """A server too busy to answer, or gone, must not cost what the clients have counted."""
        if self._source is None:
            return None
        await asyncio.sleep(max(0.0, course.window.opens - time.monotonic()))
        try:
            before = await asyncio.to_thread(read_metrics, self._source.url)
            with suppress(TimeoutError):
                left = max(0.0, course.window.closes - time.monotonic())
                await asyncio.wait_for(course.stopped.wait(), left)
            after = await asyncio.to_thread(read_metrics, self._source.url)
            return between(before, after, self._source.model)
        except InvalidInput as error:
            return Doubt(
                kind="server_unseen", text=f"the server's own figures are missing: {error}"
            )

    def _believed(
        self, server: ServerWindow | Doubt | None, tally: Tally
    ) -> ServerWindow | Doubt | None:
        """What was answered right after the window opened may have been counted before it."""
        late_answers = sum(tally.images_by_slice[SLICES // 2 :])
        if self._source is None or not isinstance(server, ServerWindow):
            return server
        if server.images or not late_answers:
            return server
        return Doubt(
            kind="server_unseen",
            text=f"the server's own figures are missing: {self._source.url} counted none of this "
            "model's images: check --metrics-url",
        )


@asynccontextmanager
async def senders(
    plan: LoadPlan,
    images: Sequence[bytes],
    connection: Connection,
    *,
    count: int | None = None,
    source: Source | None = None,
    watch: Watcher = lambda _: None,
) -> AsyncIterator[Senders]:
    """`count` of them, or as many as the plan wants; `images` are what they send."""
    setup = Setup(
        target=connection.target,
        tls=_tls(connection.tls),
        token=connection.token,
        api=plan.api,
        requests=requests_of(plan, images),
        images_per_request=plan.images_per_request,
    )
    message, processes = encoded(setup), []
    try:
        for _ in range(count or plan.client_processes):
            processes.append(await _started())
        await asyncio.gather(*(_set_up(process, message) for process in processes))
        yield Senders(processes, source, watch)
    except BaseException:  # some may be sending: nobody wants to know any more
        for process in processes:
            with suppress(ProcessLookupError):
                process.kill()
        raise
    finally:
        await asyncio.gather(*map(_ended, processes))


async def _started() -> "asyncio.subprocess.Process":
    pipe = asyncio.subprocess.PIPE
    # -P: what lies in the current folder, such as somebody's grpc.py, is not imported.
    # A process group of its own: Ctrl-C is for who started it, and ends it in good order.
    return await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "packshot.load.sender",
        stdin=pipe, stdout=pipe, process_group=0, env=POLLING | os.environ,
    )  # fmt: skip


async def _set_up(process: "asyncio.subprocess.Process", setup: bytes) -> None:
    await _say(process, setup)
    ready = await _hear(process)
    assert isinstance(ready, Ready)


async def _ordered(
    process: "asyncio.subprocess.Process",
    order: Order,
    heard: Callable[[int, Progress], None],
) -> Tally:
    await _say(process, encoded(order))
    while True:
        match await _hear(process):
            case Progress() as progress:
                heard(order.number, progress)
            case Done(tally):
                return tally


async def _say(process: "asyncio.subprocess.Process", message: bytes) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(message)
        await process.stdin.drain()
    except ConnectionError:
        raise _gone(process) from None


async def _hear(process: "asyncio.subprocess.Process") -> Message:
    assert process.stdout is not None
    try:
        (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        return decoded(await process.stdout.readexactly(length))
    except asyncio.IncompleteReadError:
        raise _gone(process) from None


def _gone(process: "asyncio.subprocess.Process") -> ServiceFailed:
    return ServiceFailed(f"client process {process.pid} of the load tester ended before its time")


async def _ended(process: "asyncio.subprocess.Process") -> None:
    """A sender that is idle ends with its input, one that still sends by a signal."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


def _tls(tls: Tls | bool) -> dict[str, str | None] | bool:
    if isinstance(tls, bool):
        return tls
    given = msgspec.structs.asdict(tls)
    return {name: None if value is None else str(value) for name, value in given.items()}


def _state(plan: LoadPlan, seconds: float, progress: list[Progress]) -> State:
    return State(
        plan,
        seconds,
        images=sum(one.images for one in progress),
        failed=sum(one.failed for one in progress),
        in_flight=sum(one.in_flight for one in progress),
    )
