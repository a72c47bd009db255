"""The image folder: found, verified and split.

DIR/<class>/*.jpg                  split here, seeded and stratified
DIR/{train,val,test}/<class>/*.jpg honoured; a missing val or test is split off train
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
from tqdm import tqdm

from packshot.cores import available_cores
from packshot.errors import DamagedFile, ImageError, InvalidInput, NotFound
from packshot.image import SUFFIXES, ImageLimits, ImageSpec, load_pixels
from trainer.recipes import Options

SPLITS = ("train", "val", "test")
PART_LIKE = {*SPLITS, "training", "valid", "validation", "dev", "testing"}
NAMED = 10  # damaged files that a message names
# Files of one's own may be larger than what a server takes from strangers.
LIMITS = ImageLimits(max_bytes=1 << 30, max_pixels=89_000_000)


class Example(msgspec.Struct, frozen=True, array_like=True):
    """One image file, relative to the data folder, the index of its label, and its sha256."""

    file: str
    label: int
    sha256: str


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """The verified data of a run. `fingerprint`: sha256 over names, splits and contents."""

    folder: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    val: tuple[Example, ...]
    test: tuple[Example, ...]
    damaged: dict[str, str]  # file -> what is wrong with it
    fingerprint: str

    @property
    def held_out(self) -> tuple[Example, ...]:
        return self.val + self.test

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


def load_split(options: Options, spec: ImageSpec) -> Split:
    """Scans, verifies and splits the data folder.

    Raises NotFound for a missing or empty folder, InvalidInput for fewer than two classes, a class
    with fewer than two usable images, or more damaged files than `max_damaged_share` allows.
    """
    given = _scan(options.data)
    labels = _labels(given, options.data)
    files = {file for per_class in given.values() for names in per_class.values() for file in names}
    hashes, damaged = _verify(options.data, sorted(files), spec)
    _check_damage(damaged, len(files), options.max_damaged_share)
    parts: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for index, label in enumerate(labels):
        usable = {
            part: [file for file in per_class.get(label, []) if file in hashes]
            for part, per_class in given.items()
        }
        for part, names in _divided(label, usable, hashes, options, index).items():
            parts[part] += [Example(file, index, hashes[file]) for file in names]
    _warn_of_copies(parts, labels)
    return Split(
        folder=str(options.data.resolve()),
        labels=labels,
        train=tuple(parts["train"]),
        val=tuple(parts["val"]),
        test=tuple(parts["test"]),
        damaged=damaged,
        fingerprint=_fingerprint(parts),
    )


def _scan(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Image files by part ("train", "val", "test") and class, relative to `folder`."""
    if not folder.is_dir():
        raise NotFound(f"--data {folder}: no such folder; it must hold one sub-folder a class")
    roots = _roots(folder)
    found = {
        part: {sub.name: _image_names(sub, folder) for sub in _folders(root)}
        for part, root in roots.items()
    }
    if not any(names for per_class in found.values() for names in per_class.values()):
        raise NotFound(
            f"--data {folder}: no image in it; expected {folder}/<class>/*.jpg "
            f"(or {folder}/train/<class>/*.jpg)"
        )
    for part, per_class in found.items():
        for label in (label for label, names in per_class.items() if not names):
            warn(f"{roots[part] / label} has no image: looked for {', '.join(sorted(SUFFIXES))}")
    return found


def _roots(folder: Path) -> dict[str, Path]:
    """The folders that hold class folders, by part. Raises InvalidInput if it is hard to tell."""
    names = [sub.name for sub in _folders(folder)]
    present = [part for part in SPLITS if part in names]
    if "train" in present:
        if others := sorted(set(names) - set(SPLITS)):
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


def _image_names(folder: Path, root: Path) -> list[str]:
    """Images at any depth; links are followed, hidden files left alone."""
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.suffix.lower() in SUFFIXES:
            found.append(str(path.relative_to(root)))
    return found


def _labels(given: dict[str, dict[str, list[str]]], folder: Path) -> tuple[str, ...]:
    labels = tuple(sorted(label for label, names in given["train"].items() if names))
    if len(labels) < 2:
        raise InvalidInput(
            f"--data {folder}: images of {len(labels)} class ({', '.join(labels)}); a classifier "
            "needs 2 or more, each in a sub-folder of its own"
        )
    for part, per_class in given.items():
        unknown = sorted(
            label for label, names in per_class.items() if names and label not in labels
        )
        if unknown:
            raise InvalidInput(
                f"{folder / part} has classes that train has no image of: {', '.join(unknown)}"
            )
    return labels


def _verify(
    folder: Path, files: Sequence[str], spec: ImageSpec
) -> tuple[dict[str, str], dict[str, str]]:
    """Decodes every file as the server would: (sha256 of the sound ones, fault of the others)."""

    def verify(file: str) -> tuple[str | None, str]:
        try:
            file.encode()
            content = (folder / file).read_bytes()
            load_pixels(content, spec, LIMITS)
        except UnicodeEncodeError:
            return None, "its name is not valid UTF-8: rename it"
        except OSError as error:
            return None, f"cannot be read: {error.strerror}"
        except ImageError as error:
            return None, str(error)
        return hashlib.sha256(content).hexdigest(), ""

    hashes: dict[str, str] = {}
    damaged: dict[str, str] = {}
    with ThreadPoolExecutor(available_cores()) as pool:
        verified = pool.map(verify, files)
        bar = tqdm(verified, total=len(files), desc="verifying images", unit="image")
        for file, (digest, fault) in zip(files, bar, strict=True):
            if digest is None:
                damaged[file.encode(errors="backslashreplace").decode()] = fault
            else:
                hashes[file] = digest
    return hashes, damaged


def _check_damage(damaged: dict[str, str], total: int, allowed: float) -> None:
    if not damaged:
        return
    share = len(damaged) / total
    lines = [f"  {file}: {fault}" for file, fault in list(damaged.items())[:NAMED]]
    if len(damaged) > NAMED:
        lines.append(f"  and {len(damaged) - NAMED} more")
    named = "\n".join(lines)
    if share > allowed:
        raise InvalidInput(
            f"{len(damaged)} of {total} files ({share:.1%}) cannot be used, more than "
            f"--max-damaged-share {allowed:.1%}:\n{named}\nmend or remove them"
        )
    warn(f"{len(damaged)} of {total} files are left out:\n{named}")


def _divided(
    label: str,
    usable: dict[str, list[str]],
    hashes: dict[str, str],
    options: Options,
    index: int,
) -> dict[str, list[str]]:
    """The files of one class by part: what was given stays, what is missing is split off train.

    Copies of one picture stay together: held out and trained on at once, they would flatter.
    """
    copies: dict[str, list[str]] = {}
    for file in usable["train"]:
        copies.setdefault(hashes[file], []).append(file)
    groups = list(copies.values())
    order = np.random.default_rng([options.seed, index]).permutation(len(groups))
    remaining = [groups[i] for i in order]
    divided = {part: usable[part] for part in ("val", "test") if part in usable}
    for part, share in (("val", options.val_share), ("test", options.test_share)):
        if part not in divided:
            count = min(max(1, round(len(groups) * share)), len(remaining) - 1)
            divided[part] = [f for _ in range(count) for f in remaining.pop()]
            if part == "val" and not divided[part]:
                raise InvalidInput(
                    f"class {label!r} has {len(groups)} usable image(s); it needs one to train on "
                    "and another to validate with: add images or remove the class"
                )
    if not remaining:
        raise InvalidInput(f"class {label!r} has no usable image to train on")
    divided["train"] = sorted(file for group in remaining for file in group)
    return divided


def _warn_of_copies(parts: dict[str, list[Example]], labels: Sequence[str]) -> None:
    """The same picture in two parts or under two labels: the figures will be off."""
    places: dict[str, set[tuple[str, int]]] = {}
    for part, examples in parts.items():
        for example in examples:
            places.setdefault(example.sha256, set()).add((part, example.label))
    leaked = sum(len({part for part, _ in found}) > 1 for found in places.values())
    torn = [sorted({label for _, label in found}) for found in places.values()]
    torn = [found for found in torn if len(found) > 1]
    if leaked:
        warn(f"{leaked} pictures are in more than one of train, val and test: figures will flatter")
    if torn:
        example = " and ".join(labels[i] for i in torn[0])
        warn(f"{len(torn)} pictures have more than one label, such as {example}")


def warn(text: str) -> None:
    print(f"WARNING: {text}", flush=True)


def _fingerprint(parts: dict[str, list[Example]]) -> str:
    digest = hashlib.sha256()
    for part, examples in parts.items():
        for example in sorted(examples, key=lambda example: example.file):
            digest.update(f"{part} {example.file} {example.sha256}\n".encode())
    return digest.hexdigest()
