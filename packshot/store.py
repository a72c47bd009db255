"""The bundle store: models/<name>/<version>/, versions counting up from 1.

The file models/<name>/released holds the version to serve; without it the highest is served.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packshot.atomic import whole_folder, write_whole
from packshot.errors import DamagedFile, NotFound

RELEASED = "released"


def model_names(store: Path) -> list[str]:
    """Names of the models that have at least one version. Raises NotFound without a store."""
    if not store.is_dir():
        raise NotFound(f"no model store at {store}: run `make export`, or name another folder")
    folders = (path for path in sorted(store.iterdir()) if path.is_dir())
    return [path.name for path in folders if versions(path)]


def versions(model: Path) -> list[int]:
    """Versions of one model's folder, ascending; hidden and half-written ones do not count."""
    if not model.is_dir():
        return []
    return sorted(
        int(path.name) for path in model.iterdir() if path.name.isdecimal() and path.is_dir()
    )


def current_version(model: Path) -> int:
    """The version to serve. Raises NotFound, or DamagedFile if `released` is not a number."""
    available = versions(model)
    if not available:
        raise NotFound(f"no version of a model in {model}: run `make export`")
    released = model / RELEASED
    if not released.exists():
        return available[-1]
    try:
        text = released.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{released} cannot be read: {error}") from error
    if not text.isdecimal():
        raise DamagedFile(f"{released} holds {text!r}; expected one of the versions {available}")
    if int(text) not in available:
        raise NotFound(f"{released} asks for version {text}; there are {available}")
    return int(text)


def release(model: Path, version: int) -> None:
    """Makes `version` the one to serve: also the way to roll back. Raises NotFound."""
    available = versions(model)
    if version not in available:
        raise NotFound(f"{model} has no version {version}; there are {available}")
    write_whole(model / RELEASED, f"{version}\n".encode())


@contextmanager
def new_version(model: Path) -> Iterator[tuple[int, Path]]:
    """Yields (version, folder to fill); the version appears if the block ends without an error."""
    version = max(versions(model), default=0) + 1
    with whole_folder(model / str(version)) as folder:
        yield version, folder
