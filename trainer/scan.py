"""The image folder: which files there are, in which part and of which class.

DIR/<class>/*.jpg                  split by packshot, seeded and stratified
DIR/{train,val,test}/<class>/*.jpg honoured; a missing val or test is split off train
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import msgspec
from tqdm import tqdm

from packshot.errors import InvalidInput, NotFound
from packshot.image import SUFFIXES

PARTS = ("train", "val", "test")
PART_LIKE = {*PARTS, "training", "valid", "validation", "dev", "testing"}


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder holds: image files relative to it, sorted, by part and class.

    `labels`: the classes that train has images of, sorted.
    """

    parts: dict[str, dict[str, list[str]]]
    labels: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        classes = (names for part in self.parts.values() for names in part.values())
        return [file for names in classes for file in names]

    def label_of(self) -> dict[str, int]:
        """The index of each file's label."""
        return {
            file: index
            for index, label in enumerate(self.labels)
            for classes in self.parts.values()
            for file in classes.get(label, [])
        }


def scan(folder: Path) -> Found:
    """Lists the images of a folder, without opening them.

    Raises NotFound for a missing or empty folder, InvalidInput for fewer than two classes, a class
    that only val or test has, or folders of which it is not clear what they are.
    """
    if not folder.is_dir():
        raise NotFound(f"--data {folder}: no such folder; it must hold one sub-folder a class")
    roots = _roots(folder)
    with tqdm(desc=f"scanning {folder}", unit=" images", disable=None) as bar:
        parts = {
            part: {sub.name: _image_names(sub, folder, bar) for sub in _folders(root)}
            for part, root in roots.items()
        }
    if not any(names for classes in parts.values() for names in classes.values()):
        raise NotFound(
            f"--data {folder}: no image in it; expected {folder}/<class>/*.jpg "
            f"(or {folder}/train/<class>/*.jpg)"
        )
    return Found(parts=parts, labels=_labels(parts, folder), warnings=_unused(roots, parts))


def _roots(folder: Path) -> dict[str, Path]:
    """The folders that hold class folders, by part. Raises InvalidInput if it is hard to tell."""
    names = [sub.name for sub in _folders(folder)]
    present = [part for part in PARTS if part in names]
    if "train" in present:
        if others := sorted(set(names) - set(PARTS)):
            raise InvalidInput(
                f"--data {folder}: {', '.join(others)} beside train/; expected train/, val/ and "
                "test/ only, or class folders only"
            )
        return {part: folder / part for part in present}
    if alike := [name for name in names if name.lower() in PART_LIKE]:
        raise InvalidInput(
            f"--data {folder}: {', '.join(alike)} look like parts, not classes: call them train, "
            "val and test"
        )
    return {"train": folder}


def _folders(folder: Path) -> list[Path]:
    return [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and sub.name[0] != "."]


def _image_names(folder: Path, root: Path, bar: "tqdm[NoReturn]") -> list[str]:
    """Images at any depth, relative to `root`; links are followed, hidden files left alone."""
    found = [str(path.relative_to(root)) for path in _images(folder, frozenset(), bar)]
    return sorted(found)


def _images(folder: Path, above: frozenset[Path], bar: "tqdm[NoReturn]") -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link that leads back up
        return
    for path in folder.iterdir():
        if path.is_dir():
            if not path.name.startswith("."):
                yield from _images(path, above | {real}, bar)
        elif _is_image(path.name):
            bar.update()
            yield path


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


def _labels(parts: dict[str, dict[str, list[str]]], folder: Path) -> tuple[str, ...]:
    labels = tuple(sorted(label for label, names in parts["train"].items() if names))
    if len(labels) < 2:
        raise InvalidInput(
            f"--data {folder}: images of {len(labels)} class ({', '.join(labels)}); a classifier "
            "needs 2 or more, each in a sub-folder of its own"
        )
    for part, classes in parts.items():
        unknown = sorted(label for label, names in classes.items() if names and label not in labels)
        if unknown:
            raise InvalidInput(
                f"{folder / part} has classes that train has no image of: {', '.join(unknown)}"
            )
    return labels


def _unused(roots: dict[str, Path], parts: dict[str, dict[str, list[str]]]) -> tuple[str, ...]:
    """What the user may have thought to be trained on, but is not."""
    looked_for = ", ".join(sorted(SUFFIXES))
    warnings = []
    for part, root in roots.items():
        empty = [label for label, names in parts[part].items() if not names]
        warnings += [f"{root / label} has no image: looked for {looked_for}" for label in empty]
        if loose := sorted(path.name for path in root.iterdir() if _is_image(path.name)):
            warnings.append(
                f"{len(loose)} images lie in {root} itself, such as {loose[0]}: they are not used, "
                "their class is not known; move them into a class folder"
            )
    return tuple(warnings)
