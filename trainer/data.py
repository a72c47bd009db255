"""The data of a run: scanned, verified, looked through for copies, and split."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import msgspec

from packshot.errors import DamagedFile
from packshot.image import ImageSpec
from trainer.duplicates import Duplicates, find_duplicates
from trainer.partition import partition
from trainer.recipes import Options
from trainer.scan import PARTS, scan
from trainer.verify import Inspected, damage_told, verify


class Example(msgspec.Struct, frozen=True, array_like=True):
    """One image file, relative to the data folder, the index of its label, and its sha256.

    Width and height are in pixels, upright; 0 in splits that older versions wrote.
    """

    file: str
    label: int
    sha256: str
    width: int = 0
    height: int = 0


class Split(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The verified data of a run. `fingerprint`: sha256 over names, splits and contents.

    `duplicates`: which files are copies of one another. `warnings`: as printed before training.
    """

    folder: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    test: tuple[Example, ...]
    damaged: dict[str, str]  # file -> what is wrong with it
    fingerprint: str
    duplicates: Duplicates = Duplicates()
    warnings: tuple[str, ...] = ()

    @property
    def held_out(self) -> tuple[Example, ...]:
        return self.val + self.test

    @property
    def examples(self) -> tuple[Example, ...]:
        return self.train + self.held_out

    @property
    def train_labels(self) -> list[int]:
        return [example.label for example in self.train]

    @property
    def train_counts(self) -> list[int]:
        """Training images of each class."""
        counts = [0] * len(self.labels)
        for example in self.train:
            counts[example.label] += 1
        return counts

    @cached_property
    def leaked(self) -> tuple[tuple[str, ...], ...]:
        """Groups of copies that are in more than one part."""
        parts = {e.file: part for part in PARTS for e in getattr(self, part)}
        return _torn(self.duplicates, parts)

    @cached_property
    def conflicting(self) -> tuple[tuple[str, ...], ...]:
        """Groups of copies that have more than one label."""
        return _torn(self.duplicates, {e.file: e.label for e in self.examples})

    def read(self, example: Example) -> bytes:
        """Raises DamagedFile if the file is not there any more, or not as it was."""
        path = Path(self.folder, example.file)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DamagedFile(f"{path} cannot be read any more: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != example.sha256:
            raise DamagedFile(f"{path} has changed since the data was scanned: train again")
        return content


def load_split(
    options: Options, spec: ImageSpec, known: dict[str, Inspected] | None = None
) -> Split:
    """Scans, verifies and splits the data folder. `known`: see `verify`.

    Raises NotFound for a missing or empty folder, InvalidInput for fewer than two classes, a class
    with too few usable images, or more damaged files than `max_damaged_share` allows.
    """
    found = scan(options.data)
    sound, damaged = verify(options.data, found.files, spec, {} if known is None else known)
    told = damage_told(damaged, len(found.files), options.max_damaged_share)
    duplicates = _duplicates(sound)
    parts, flattering = partition(found, sound, duplicates, options)
    label_of = found.label_of()
    examples = {
        part: tuple(_example(file, label_of[file], sound[file]) for file in files)
        for part, files in parts.items()
    }
    return Split(
        folder=str(options.data.resolve()),
        labels=found.labels,
        train=examples["train"],
        val=examples["val"],
        test=examples["test"],
        damaged=damaged,
        fingerprint=_fingerprint(examples),
        duplicates=duplicates,
        warnings=found.warnings + told + flattering,
    )


def _duplicates(sound: Mapping[str, Inspected]) -> Duplicates:
    seen = sound.values()
    return find_duplicates(
        files=list(sound),
        contents=[one.sha256 for one in seen],
        hashes=[one.perceptual_hash for one in seen],
        thumbnails=[one.thumbnail for one in seen],
    )


def _example(file: str, label: int, seen: Inspected) -> Example:
    return Example(file, label, seen.sha256, seen.width, seen.height)


def _torn(duplicates: Duplicates, place: Mapping[str, object]) -> tuple[tuple[str, ...], ...]:
    """The groups whose files are not all in the same place."""
    return tuple(group for group in duplicates.groups if len({place[file] for file in group}) > 1)


def _fingerprint(examples: Mapping[str, tuple[Example, ...]]) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        for example in sorted(examples[part], key=lambda example: example.file):
            digest.update(f"{part} {example.file} {example.sha256}\n".encode())
    return digest.hexdigest()
