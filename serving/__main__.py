"""`python -m serving --models models`: serve the models of a store until SIGTERM."""

import os
import signal
import sys

if __name__ == "__main__":
    # Before the imports, which take half a second: meanwhile SIGHUP would end the process, and the
    # kernel keeps signals without a handler from the first process of a container. A stop is a
    # success, as while models are loaded, but not where a question was asked.
    asked = {"--check", "--print-config"} & {*sys.argv}
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda number, _: os._exit(128 + number if asked else 0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from packshot.cores import available_cores
from packshot.errors import PackshotError
from serving.app import App
from serving.command_line import parse_settings, to_toml
from serving.freed_memory import limit_pools
from serving.logs import close_logs, configure_logging
from serving.settings import Settings
from serving.signals import ignore_signals

log = logging.getLogger("packshot.app")

T = TypeVar("T")


def main() -> int:
    configure_logging()
    try:
        settings = parse_settings()
        configure_logging(settings.log_format, settings.log_level)
        return _run(settings)
    except PackshotError as error:
        ignore_signals()  # a stop now would pass for a success
        if not close_logs():  # what was logged comes before it
            os._exit(1)
        print(f"packshot: cannot serve: {error}", file=sys.stderr)
        return 1


def _run(settings: Settings) -> int:
    if settings.print_config:
        print(to_toml(settings.effective()))
        return 0
    if settings.check:
        told, sound = _on_loop(_check(settings))
        print(told)
        return 0 if sound else 1
    limit_pools(available_cores())
    configure_logging(settings.log_format, settings.log_level, in_thread=True)
    log.info("settings: %s", " ".join(map(str, settings.effective())))
    app = _on_loop(_serve(settings))
    written = close_logs()
    if app.left_behind or app.still_loading or not written:
        # A thread that hangs, in an engine or over the log, would hold up the exit for ever, and
        # one that loads for as long as that takes.
        os._exit(int(app.left_behind))
    return 0


def _on_loop(work: Coroutine[Any, Any, T]) -> T:
    """What comes after it takes tenths of a second: then signals are too late to ask for a stop."""

    async def run() -> T:
        try:
            return await work
        finally:
            ignore_signals()  # before the loop is closed, on which they are heard

    return uvloop.run(run())


async def _check(settings: Settings) -> tuple[str, bool]:
    return await App(settings).check()


async def _serve(settings: Settings) -> App:
    """The server that was, for what it left behind."""
    app = App(settings)
    await app.run()
    return app


if __name__ == "__main__":
    raise SystemExit(main())
