"""The command line: flags to settings, and the settings in force as TOML."""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from packshot.errors import InvalidInput
from packshot.image_names import printable
from serving.settings import Effective, Option, Settings, options
from serving.wording import spelled

MORE = """Each option can also be given in the environment (PACKSHOT_MAX_BATCH=8) or in the TOML
file of --config (max_batch = 8). A flag wins over the environment, that over the file."""


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Raises InvalidInput for what makes no sense, from wherever it comes."""
    return Settings(**vars(_parser().parse_args(arguments)))


def to_toml(effective: Sequence[Effective]) -> str:
    """The settings in force as `--config` reads them, each with its source.

    Raises InvalidInput for a path, or a name, that is not UTF-8: TOML has no way to write it.
    """
    return "\n".join(_line(*one) for one in effective)


def _line(name: str, value: object, source: str) -> str:
    if value is None:
        return f"# {name} is not set"
    line = f"{name} = {_toml(value)}"
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{spelled(name, {name: source}, None)} is not UTF-8, so no settings file can hold it: "
            f"{printable(line)}"
        ) from error
    return f"{line:<40} # {source}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        usage="%(prog)s --models PATH [option ...]",
        description="Serve the newest (or released) version of a bundle over gRPC.",
        epilog=MORE,
        argument_default=argparse.SUPPRESS,  # what is not given is left to the other sources
        allow_abbrev=False,
    )
    for group, members in itertools.groupby(options().values(), lambda option: option.group):
        section = parser.add_argument_group(group.title)
        for option in members:
            _add(section, option)
    return parser


def _add(section: Any, option: Option) -> None:
    field = option.field
    if field.annotation is bool:
        section.add_argument(option.flag, action="store_true", help=field.description)
        return
    several = isinstance(field.default, tuple)
    section.add_argument(
        option.flag,
        action="append" if several else "store",
        metavar=_metavar(field),
        help=field.description
        if field.is_required()
        else f"{field.description} (default: {_shown(field.default)})",
    )


def _metavar(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    kinds: dict[object, str] = {int: "N", float: "X", Path: "PATH", Path | None: "FILE"}
    return "A,B" if isinstance(field.default, tuple) else kinds.get(field.annotation, "TEXT")


def _shown(default: object) -> str:
    if default is None or default == ():
        return "none"
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _toml(value: object) -> str:
    plain = (
        [*value] if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    )
    # JSON's texts, numbers and lists are TOML's too, but for DEL, which JSON does not escape.
    return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007F")
