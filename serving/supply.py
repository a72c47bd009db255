"""Where models come from: a store, or the folder of one version by itself.

What hands out models one version at a time, as KServe does, leaves the version's files in a folder
of its own choosing, whose name and parent say nothing.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias

from packshot.bundle import MANIFEST, Manifest, read_manifest
from packshot.errors import DamagedFile, NotFound
from packshot.store import RELEASED, current_version, model_names


class Store(NamedTuple):
    """<folder>/<name>/<version>/: versions come and go while the server runs."""

    folder: Path

    def names(self) -> list[str]:
        """Raises NotFound without a store."""
        return model_names(self.folder)

    def choose(self, name: str) -> Path:
        """Folder of the version to serve. Raises NotFound or DamagedFile."""
        names = self.names()
        if name not in names:
            there = ", ".join(names) or "none"
            raise NotFound(f"no model {name!r} in {self.folder}; there is {there}")
        return self.folder / name / str(current_version(self.folder / name))

    def released(self, name: str) -> Path:
        """The file that says which version is chosen, there or not."""
        return self.folder / name / RELEASED

    def check_place(self, folder: Path, manifest: Manifest) -> None:
        """Raises DamagedFile if another version than this was copied there."""
        if (manifest.model, str(manifest.version)) != (folder.parent.name, folder.name):
            raise DamagedFile(
                f"{folder} holds version {manifest.version} of {manifest.model!r}: "
                "put it in its place"
            )


class OneVersion(NamedTuple):
    """<folder>/manifest.json: this version, for as long as the server runs."""

    folder: Path

    def names(self) -> list[str]:
        """Raises NotFound or DamagedFile."""
        return [read_manifest(self.folder).model]

    def choose(self, name: str) -> Path:
        """Raises NotFound or DamagedFile."""
        [only] = self.names()
        if name != only:
            raise NotFound(f"no model {name!r} in {self.folder}, which is a version of {only!r}")
        return self.folder

    def released(self, _name: str) -> Path:
        return self.folder / MANIFEST

    def check_place(self, folder: Path, manifest: Manifest) -> None:
        """It may lie anywhere."""


Supply: TypeAlias = Store | OneVersion


def supply_in(folder: Path) -> Supply:
    with suppress(PermissionError):  # which a store tells in full
        if (folder / MANIFEST).is_file():
            return OneVersion(folder)
    return Store(folder)
