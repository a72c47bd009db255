"""Versions, bundles and differences as text for a terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packshot.bundle import Manifest
from packshot.difference import Change, Difference, FileChange, LabelChange, leaves
from packshot.inventory import Version, size_of

SERVED = "*"
NAMES_SHOWN = 12  # labels and files: of long lists the number says more


def table(rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first row is the head."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def size_text(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def versions_table(found: Sequence[Version]) -> str:
    """The served version of each model has a star."""
    head = ["MODEL", "VERSION", "CREATED", "ARCHITECTURE", "LABELS", "SIZE", "ACCURACY BY ENGINE"]
    return table([head, *map(_version_row, found)])


def _version_row(record: Version) -> list[str]:
    version = f"{record.version}{f' {SERVED}' if record.served else ''}"
    if record.fault is not None:
        size = size_text(record.bytes)
        return [record.model, version, "?", "?", "?", size, f"FAULT {record.fault}"]
    engines = ", ".join(f"{name} {_percent(one.accuracy)}" for name, one in record.engines.items())
    return [
        record.model, version, record.created, record.architecture, str(record.labels),
        size_text(record.bytes), engines,
    ]  # fmt: skip


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.2%}"


def show_text(folder: Path, record: Version, manifest: Manifest) -> str:
    facts = {
        "folder": str(folder),
        "created": manifest.created,
        "size": size_text(record.bytes),
        "network": f"{manifest.architecture}, embedding of {manifest.embedding_width}",
        "labels": _listed(manifest.labels),
        "image": manifest.image.geometry,
        "temperature": f"{manifest.temperature:g}",
        "abstains": f"below {manifest.min_confidence:g}" if manifest.min_confidence else "never",
        **{f"left out: {name}": reason for name, reason in manifest.left_out.items()},
    }
    head = f"{record.model} {record.version}{', served' if record.served else ''}"
    parts = [head, _indented(facts), "engines", _indented_text(_engines_table(folder, manifest))]
    if manifest.provenance:
        provenance = {name: str(value) for name, value in leaves(manifest.provenance)}
        parts += ["provenance", _indented(provenance)]
    return "\n".join(parts)


def _engines_table(folder: Path, manifest: Manifest) -> str:
    rows = [["ENGINE", "FILE", "SIZE", "PRECISION", "ACCURACY", "AGREEMENT", "IMAGES", "MADE WITH"]]
    for name, engine in manifest.engines.items():
        measured = engine.measured
        made_with = ", ".join(f"{what} {which}" for what, which in engine.made_with.items())
        rows.append([
            name, engine.file, size_text(size_of(folder / engine.file)), engine.precision,
            _percent(measured.accuracy), f"{measured.agreement:.2%}", str(measured.images),
            made_with,
        ])  # fmt: skip
    return table(rows)


def difference_text(found: Difference) -> str:
    before, after = found.versions
    parts = [
        *_label_lines(found.labels),
        *_change_lines("image", found.image),
        *_change_lines("", found.settings),
        *(f"engine {name}: added" for name in found.engines_added),
        *(f"engine {name}: removed" for name in found.engines_removed),
        *(line for name in found.engines for line in _change_lines(name, found.engines[name])),
        *_change_lines("left out", found.left_out),
        *_change_lines("provenance", found.provenance),
        *_file_lines(found.files),
    ]
    return "\n".join([f"{found.model} {before} -> {after}", *(f"  {part}" for part in parts)])


def _label_lines(labels: LabelChange) -> Iterator[str]:
    if labels.added:
        yield f"labels added: {_listed(labels.added)}"
    if labels.removed:
        yield f"labels removed: {_listed(labels.removed)}"
    if labels.reordered:
        yield "labels in another order"


def _change_lines(of: str, changes: Mapping[str, Change]) -> Iterator[str]:
    for name, (before, after) in changes.items():
        yield f"{of} {name}: {_value(before)} -> {_value(after)}".lstrip()


def _file_lines(files: FileChange) -> Iterator[str]:
    copied = [name for name in files.same if name not in files.shared]
    for what, names in [
        ("added", files.added),
        ("removed", files.removed),
        ("changed", files.changed),
        ("the same, shared on disk", files.shared),
        ("the same, in two copies", copied),
    ]:
        if names:
            yield f"files {what}: {_listed(names)}"


def _value(value: Any) -> str:
    return "none" if value is None else str(value)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown}, ... ({len(names)})"


def _indented(facts: Mapping[str, str]) -> str:
    return _indented_text(table(facts.items()))


def _indented_text(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
