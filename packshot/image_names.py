"""The images that a user names on a command line, and how they are named in answers."""

import glob
from collections.abc import Sequence
from pathlib import Path

from packshot.errors import InvalidInput
from packshot.image import SUFFIXES


def image_names(patterns: Sequence[str]) -> list[str]:
    """Files, folders (searched for images at any depth), globs and "-" as a flat list of names.

    Raises InvalidInput where one has no match, or all together none.
    """
    names: list[str] = []
    for given in patterns:
        if given == "-" or Path(given).is_file():
            names.append(given)
        elif Path(given).is_dir():
            found = (p for p in sorted(Path(given).rglob("*")) if p.suffix.lower() in SUFFIXES)
            names += [str(path) for path in found]
        else:
            matches = sorted(glob.glob(given, recursive=True))  # noqa: PTH207  # Path.glob refuses absolute patterns
            if not matches:
                raise InvalidInput(f"{given}: no such file, folder or pattern with matches")
            names += [match for match in matches if Path(match).is_file()]
    if not names:
        raise InvalidInput(f"no image in {', '.join(patterns)}")
    return names


def printable(name: str) -> str:
    """The name as text: bytes of it that are not UTF-8, as a disk may have them, become \\xe9."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
