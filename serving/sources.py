"""Where settings come from besides flags: the environment and a TOML file. Typos are refused."""

import difflib
import os
import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    TomlConfigSettingsSource,
)

from packshot.errors import InvalidInput

PREFIX = "PACKSHOT_"
CLIENTS = {"PACKSHOT_TOKEN"}  # read by the `packshot` command
ORIGINS = {"InitSettingsSource": "flag", "Environment": "environment", "ConfigFile": "file"}

# A Kubernetes Service whose name begins with "packshot" puts such variables into every pod beside
# it, PACKSHOT_PORT=tcp://10.0.0.1:8001 among them: they are not ours.
SERVICE_LINK = re.compile(
    r"PACKSHOT_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_\w+(_PROTO|_PORT|_ADDR)?)"
)
LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


class Environment(EnvSettingsSource):
    """`PACKSHOT_<NAME>`; an empty variable counts as not set."""

    def __init__(self, settings: type[BaseSettings], names: Collection[str]) -> None:
        """Raises InvalidInput for a variable with the prefix that is none of `names`."""
        super().__init__(settings, env_prefix=PREFIX, case_sensitive=False, env_ignore_empty=True)
        known = {f"{PREFIX}{name.upper()}" for name in names}
        for variable, value in os.environ.items():
            ours = variable.startswith(PREFIX) and variable not in CLIENTS
            if ours and variable not in known and not _service_link(variable, value):
                raise InvalidInput(
                    f"environment variable {variable} is not known{_hint(variable, known)}"
                )

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value, key, is_complex = super().get_field_value(field, field_name)
        if value is not None and LINK_VALUE.match(value) and field_name.endswith("port"):
            value = None
        return value, key, is_complex


class ConfigFile(TomlConfigSettingsSource):
    """A flat TOML file of settings."""

    def __init__(
        self, settings: type[BaseSettings], file: Path | None, names: Collection[str]
    ) -> None:
        """Raises InvalidInput for a file that is not there, is no TOML, or has a key not known."""
        if file is not None and is_missing(file):
            raise InvalidInput(f"--config {file}: there is no such file")
        try:
            super().__init__(settings, file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise InvalidInput(f"--config {file} cannot be read: {error}") from error
        for key in self.toml_data:
            if key not in names:
                raise InvalidInput(f"{key!r} in {file} is not known{_hint(key, names)}")

    def __call__(self) -> dict[str, Any]:
        # No setting of a file is one of these, and Pydantic would take true for 1.
        return {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in super().__call__().items()
        }


class Origins(PydanticBaseSettingsSource):
    """The last source: adds which of those before it gave each value."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError("gives all at once")

    def __call__(self) -> dict[str, Any]:
        found: dict[str, str] = {}
        for source, values in self.settings_sources_data.items():
            for name in values:
                found.setdefault(name, ORIGINS[source])
        return {"origins": found}


def is_missing(file: Path) -> bool:
    """Not so for a file in a folder that may not be entered: reading it says why."""
    try:
        return not file.is_file()
    except OSError:
        return False


def _service_link(variable: str, value: str) -> bool:
    named = SERVICE_LINK.fullmatch(variable) is not None
    return named or (variable.endswith("_PORT") and LINK_VALUE.match(value) is not None)


def _hint(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": is {close[0]} meant?" if close else ""
