"""Files that change while the server runs: who they are now, so that a change is seen."""

from pathlib import Path

Stamp = tuple[tuple[int, int, int, int], ...]


def stamp(*files: Path) -> Stamp:
    """Equal as long as none of the files was written, replaced, relinked or made readable.

    Links are followed: Kubernetes swaps a whole folder of mounted secrets by one link. A file that
    cannot be looked at has a stamp of its own.
    """
    return tuple(_identity(file) for file in files)


def _identity(file: Path) -> tuple[int, int, int, int]:
    try:
        found = file.stat()
    except OSError:
        return (0, 0, 0, 0)
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)
