"""The load tester: requests at a given rate, or a given number in flight, and what became of them.

At a rate, each latency counts from the moment when the request was due, not when it was sent: a
slow answer cannot hide by holding back the requests behind it (coordinated omission).
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from packshot.channel import Connection, Tls
from packshot.load.interrupt import stopped_by_interrupt
from packshot.load.report import LoadReport
from packshot.load.senders import Source, Watcher, senders
from packshot.load.sweep import Sweep, sweep
from packshot.load_plan import LoadPlan

__all__ = ["LoadPlan", "LoadReport", "Source", "Sweep", "run_load", "run_sweep"]


def run_load(
    plan: LoadPlan,
    images: Sequence[bytes],
    *,
    tls: Tls | bool = False,
    token: str | None = None,
    source: Source | None = None,
    watch: Watcher = lambda _: None,
) -> LoadReport:
    """Runs the plan against a server; `watch` is told every half second how it goes.

    `images`: encoded files or, with `plan.pixels`, raw pixels, at least one. `source`: where the
    server's own figures are. Ctrl-C while it counts ends it early: see `stopped_after` of the
    report. Raises InvalidInput or ServiceFailed.
    """

    async def run() -> LoadReport:
        connection = Connection(target=plan.target, tls=tls, token=token)
        async with senders(plan, images, connection, source=source, watch=watch) as clients:
            with stopped_by_interrupt(clients):
                return await clients.run(plan)

    return asyncio.run(run())


def run_sweep(
    plan: LoadPlan,
    images: Sequence[bytes],
    *,
    tls: Tls | bool = False,
    token: str | None = None,
    source: Source | None = None,
    watch: Watcher = lambda _: None,
    tell: Callable[[LoadReport], None] = lambda _: None,
) -> Sweep:
    """Like `run_load` at many rates, whatever rate the plan has; `tell` gets each one's report."""

    async def run() -> Sweep:
        connection = Connection(target=plan.target, tls=tls, token=token)
        count = msgspec.structs.replace(plan, rate=1.0).client_processes  # of its open loops
        async with senders(
            plan, images, connection, count=count, source=source, watch=watch
        ) as clients:
            return await sweep(clients, plan, tell)

    return asyncio.run(run())
