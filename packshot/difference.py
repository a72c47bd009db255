"""What changed from one version of a model to another."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from packshot.bundle import EngineFile, Manifest

Change = tuple[Any, Any]
"""Before and after; None where there is no such field."""

SETTINGS = ("architecture", "embedding_width", "temperature", "min_confidence", "format")
UNCOMPARED = {"timings", "timed_on", "attempts"}
"""Of an engine: what differs from one export to the next of the same network."""


class LabelChange(msgspec.Struct, frozen=True, kw_only=True):
    """`reordered`: those that both have stand in another order, so that class indices moved."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    reordered: bool


class FileChange(msgspec.Struct, frozen=True, kw_only=True):
    """By content. `shared`: those of `same` that are one file on disk, by hard links."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    same: tuple[str, ...]
    shared: tuple[str, ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that did not change are not in the dictionaries; names of nested ones have dots."""

    model: str
    versions: tuple[int, int]
    labels: LabelChange
    image: dict[str, Change]
    settings: dict[str, Change]
    engines_added: tuple[str, ...]
    engines_removed: tuple[str, ...]
    engines: dict[str, dict[str, Change]]
    left_out: dict[str, Change]
    provenance: dict[str, Change]
    files: FileChange


def difference(folder: Path, before: Manifest, after: Manifest) -> Difference:
    """Of two versions of the model in `folder`."""
    added, removed, both = _compared(before.engines, after.engines)
    engines = {
        name: _changes(_described(before.engines[name]), _described(after.engines[name]))
        for name in both
    }
    return Difference(
        model=folder.name,
        versions=(before.version, after.version),
        labels=_label_change(before.labels, after.labels),
        image=_changes(msgspec.to_builtins(before.image), msgspec.to_builtins(after.image)),
        settings=_changes(
            {name: getattr(before, name) for name in SETTINGS},
            {name: getattr(after, name) for name in SETTINGS},
        ),
        engines_added=added,
        engines_removed=removed,
        engines={name: changes for name, changes in engines.items() if changes},
        left_out=_changes(before.left_out, after.left_out),
        provenance=_changes(before.provenance, after.provenance),
        files=_file_change(folder, before, after),
    )


def _label_change(before: tuple[str, ...], after: tuple[str, ...]) -> LabelChange:
    added, removed, _ = _compared(dict.fromkeys(before), dict.fromkeys(after))
    stayed_before = [label for label in before if label not in removed]
    stayed_after = [label for label in after if label not in added]
    return LabelChange(added=added, removed=removed, reordered=stayed_before != stayed_after)


def _file_change(folder: Path, before: Manifest, after: Manifest) -> FileChange:
    old, new = folder / str(before.version), folder / str(after.version)
    added, removed, both = _compared(before.files, after.files)
    same = tuple(name for name in both if before.files[name] == after.files[name])
    return FileChange(
        added=added,
        removed=removed,
        changed=tuple(name for name in both if name not in same),
        same=same,
        shared=tuple(name for name in same if _one_file(old / name, new / name)),
    )


def _one_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:
        return False


def _compared(
    before: dict[str, Any], after: dict[str, Any]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names added, names removed, names in both; in their order."""
    added = tuple(name for name in after if name not in before)
    removed = tuple(name for name in before if name not in after)
    return added, removed, tuple(name for name in after if name in before)


def _described(engine: EngineFile) -> dict[str, Any]:
    described: dict[str, Any] = msgspec.to_builtins(engine)
    return {name: value for name, value in described.items() if name not in UNCOMPARED}


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Change]:
    old, new = dict(leaves(before)), dict(leaves(after))
    names = dict.fromkeys([*old, *new])
    return {
        name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)
    }


def leaves(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of nested dictionaries, their names joined by dots."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
