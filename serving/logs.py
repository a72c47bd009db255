"""How log lines look: JSON for machines, aligned and coloured for people on a terminal.

Everything is logged with the standard library, `log.info("...", extra={...})`; structlog lays out.
"""

import logging
import sys
from collections.abc import Callable
from typing import Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor

from serving.log_thread import Lines, LogThread

Format = Literal["auto", "json", "human"]
FIRST = ("timestamp", "level", "logger", "event")


def configure_logging(
    format: Format = "auto",  # noqa: A002 - as the option is called
    level: str = "info",
    stream: TextIO | None = None,
    *,
    in_thread: bool = False,
) -> None:
    """All lines of this process from now on, to `stream` (standard error).

    `auto` is human on a terminal, JSON lines elsewhere. With `in_thread` nothing that logs waits
    for whoever reads the lines. Raises ValueError for an unknown level.
    """
    target = sys.stderr if stream is None else stream
    human = format == "human" or (format == "auto" and target.isatty())
    lines = Lines(target)
    lines.setFormatter(_formatter(human=human, colors=human and target.isatty()))
    handler = LogThread(lines) if in_thread else lines
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_without_metadata)


def _without_metadata(record: logging.LogRecord) -> bool:
    """gRPC quotes metadata that is no text, whoever sent it: it may be a token, and many lines."""
    return not str(record.msg).startswith("Invalid encoding on")


def count_lost_lines(count: Callable[[], None]) -> None:
    """Calls `count` for each line that is lost, where lines are written in a thread."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogThread):
            handler.on_lost = count


def close_logs() -> bool:
    """Writes what still waits. Whether all of it could be written: if not, nobody reads."""
    handlers = logging.getLogger().handlers
    for handler in handlers:
        handler.close()
    return not any(isinstance(handler, LogThread) and handler.stuck for handler in handlers)


def _formatter(*, human: bool, colors: bool) -> structlog.stdlib.ProcessorFormatter:
    common: list[Processor] = [
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(
            fmt="%H:%M:%S" if human else "iso", utc=not human, key="timestamp"
        ),
    ]
    layout = _human(colors) if human else _JSON
    meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=common, processors=[meta, *layout])


def _human(colors: bool) -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors,
        sort_keys=False,
        pad_event_to=0,
        exception_formatter=structlog.dev.plain_traceback,
    )
    return [renderer]


def _known_first(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Lines are then easy to compare by eye too."""
    return {**{key: event[key] for key in FIRST}, **event}


def _to_json(event: EventDict, **_options: object) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


_JSON: list[Processor] = [
    structlog.processors.format_exc_info,
    _known_first,
    structlog.processors.JSONRenderer(serializer=_to_json),
]
