"""What is in the store, as records: one a version, readable or not."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec

from packshot.bundle import Manifest, read_manifest
from packshot.errors import PackshotError
from packshot.store import served_version, versions


class EngineSummary(msgspec.Struct, frozen=True, kw_only=True):
    """`accuracy`: on held-out images where the engine was made; None if labels were not there."""

    bytes: int
    accuracy: float | None


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """`fault`: why the manifest cannot be read; then little else is known."""

    model: str
    version: int
    served: bool
    bytes: int  # of all files, those shared with other versions too
    created: str = ""
    architecture: str = ""
    labels: int = 0
    engines: dict[str, EngineSummary] = {}  # msgspec copies it for each record
    fault: str | None = None


def inventory(model: Path) -> list[Version]:
    """Every version of one model, ascending."""
    served = served_version(model)
    return [
        version_record(model / str(version), served=version == served)
        for version in versions(model)
    ]


def version_record(folder: Path, *, served: bool) -> Version:
    record = Version(
        model=folder.parent.name, version=int(folder.name), served=served, bytes=_bytes_in(folder)
    )
    try:
        manifest = read_manifest(folder)
    except PackshotError as error:
        return msgspec.structs.replace(record, fault=str(error))
    return msgspec.structs.replace(
        record,
        created=manifest.created,
        architecture=manifest.architecture,
        labels=len(manifest.labels),
        engines=_engines(folder, manifest),
    )


def freed_bytes(model: Path, removed: Iterable[int]) -> int:
    """What removing these versions gives back: files that others share stay on disk."""
    paths = [path for version in removed for path in (model / str(version)).iterdir()]
    found = [path.stat() for path in paths]
    names_removed = Counter((file.st_dev, file.st_ino) for file in found)
    files = {(file.st_dev, file.st_ino): file for file in found}
    return sum(file.st_size for key, file in files.items() if file.st_nlink == names_removed[key])


def _engines(folder: Path, manifest: Manifest) -> dict[str, EngineSummary]:
    return {
        name: EngineSummary(bytes=size_of(folder / engine.file), accuracy=engine.measured.accuracy)
        for name, engine in manifest.engines.items()
    }


def _bytes_in(folder: Path) -> int:
    return sum(size_of(path) for path in folder.iterdir())


def size_of(path: Path) -> int:
    """0 if it is missing: `verify` says so."""
    return path.stat().st_size if path.is_file() else 0
