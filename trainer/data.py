"""The image folder: found, verified, split, and fed to the training loop.

DIR/<class>/*.jpg                  split here, seeded and stratified
DIR/{train,val,test}/<class>/*.jpg honoured; a missing val or test is split off train
"""

import hashlib
import os
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from packshot.errors import DamagedFile, ImageError, InvalidInput, NotFound
from packshot.image import SUFFIXES, ImageSpec, Pixels, load_pixels
from trainer.augment import training_view
from trainer.recipes import Options, Recipe

SPLITS = ("train", "val", "test")
NAMED = 10  # damaged files that a message names


class Example(msgspec.Struct, frozen=True, array_like=True):
    """One image file, relative to the data folder, and the index of its label."""

    file: str
    label: int


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
        """Raises DamagedFile if the file has gone or cannot be read any more."""
        path = Path(self.folder, example.file)
        try:
            return path.read_bytes()
        except OSError as error:
            raise DamagedFile(f"{path} cannot be read: {error.strerror}; train again") from error


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
        for part, names in _divided(label, usable, options, index).items():
            parts[part] += [Example(file, index) for file in names]
    return Split(
        folder=str(options.data.resolve()),
        labels=labels,
        train=tuple(parts["train"]),
        val=tuple(parts["val"]),
        test=tuple(parts["test"]),
        damaged=damaged,
        fingerprint=_fingerprint(parts, hashes),
    )


def _scan(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Image files by part ("train", "val", "test") and class, relative to `folder`."""
    if not folder.is_dir():
        raise NotFound(f"--data {folder}: no such folder; it must hold one sub-folder a class")
    present = {part: folder / part for part in SPLITS if (folder / part).is_dir()}
    roots = present if "train" in present else {"train": folder}
    found = {
        part: {
            sub.name: [str(file.relative_to(folder)) for file in _images(sub)]
            for sub in sorted(root.iterdir())
            if sub.is_dir() and not sub.name.startswith(".")
        }
        for part, root in roots.items()
    }
    if not any(names for per_class in found.values() for names in per_class.values()):
        raise NotFound(
            f"--data {folder}: no image in it; expected {folder}/<class>/*.jpg "
            f"(or {folder}/train/<class>/*.jpg)"
        )
    return found


def _images(folder: Path) -> Iterable[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.suffix.lower() in SUFFIXES:
            yield path


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
            content = (folder / file).read_bytes()
            load_pixels(content, spec)
        except OSError as error:
            return None, f"cannot be read: {error.strerror}"
        except ImageError as error:
            return None, str(error)
        return hashlib.sha256(content).hexdigest(), ""

    hashes: dict[str, str] = {}
    damaged: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verified = pool.map(verify, files)
        for file, (digest, fault) in zip(
            files,
            tqdm(verified, total=len(files), desc="verifying images", unit="image"),
            strict=True,
        ):
            if digest is None:
                damaged[file] = fault
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
    print(f"WARNING: {len(damaged)} of {total} files are left out:\n{named}", flush=True)


def _divided(
    label: str, usable: dict[str, list[str]], options: Options, index: int
) -> dict[str, list[str]]:
    """The files of one class by part: what was given stays, what is missing is split off train."""
    names = list(usable["train"])
    rng = np.random.default_rng([options.seed, index])
    rng.shuffle(names)
    divided = {part: usable[part] for part in ("val", "test") if part in usable}
    shares = {"val": options.val_share, "test": options.test_share}
    for part in ("val", "test"):
        if part not in divided:
            count = min(max(1, round(len(usable["train"]) * shares[part])), len(names) - 1)
            divided[part] = [names.pop() for _ in range(max(0, count))]
    if not names or not divided["val"]:
        sound = sum(len(files) for files in usable.values())
        raise InvalidInput(
            f"class {label!r} has {sound} usable image(s); it needs one to train on and one to "
            "validate with: add images or remove the class"
        )
    divided["train"] = sorted(names)
    return divided


def _fingerprint(parts: dict[str, list[Example]], hashes: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for part, examples in parts.items():
        for example in sorted(examples, key=lambda example: example.file):
            digest.update(f"{part} {example.file} {hashes[example.file]}\n".encode())
    return digest.hexdigest()


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One training step: which images, at which size. Epochs count from 1."""

    epoch: int
    size: int
    examples: tuple[int, ...]


def plan_steps(recipe: Recipe, images: int, seed: int) -> list[Step]:
    """Every step of the run, known from the start: each epoch sees each image once.

    The last, incomplete batch of an epoch is filled from its own beginning: a batch of one would
    leave BatchNorm nothing to average.
    """
    per_epoch = max(1, images // recipe.batch_size)
    total = recipe.epochs * per_epoch
    ends = np.cumsum([share for _, share in recipe.stages])
    steps = []
    for epoch in range(1, recipe.epochs + 1):
        order = np.resize(
            np.random.default_rng([seed, epoch]).permutation(images), per_epoch * recipe.batch_size
        )
        for batch in order.reshape(per_epoch, recipe.batch_size):
            stage = int(np.searchsorted(ends, (len(steps) + 0.5) / total * ends[-1]))
            size = recipe.stages[stage][0]
            steps.append(Step(epoch=epoch, size=size, examples=tuple(batch.tolist())))
    return steps


class TrainingViews(Dataset[tuple[Pixels, int]]):
    """Augmented training images; the key (example, size, epoch) fixes every random choice."""

    def __init__(self, split: Split, recipe: Recipe, spec: ImageSpec, seed: int) -> None:
        self._split, self._recipe, self._spec, self._seed = split, recipe, spec, seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Pixels, int]:
        number, size, epoch = key
        example = self._split.train[number]
        rng = np.random.default_rng([self._seed, epoch, number])
        view = training_view(self._split.read(example), size, self._recipe, self._spec, rng)
        return view, example.label


Batch = tuple[torch.Tensor, torch.Tensor]
"""Images uint8 [N, size, size, 3] and labels int64 [N]."""


def training_batches(
    views: TrainingViews, steps: Sequence[Step], workers: int
) -> DataLoader[Batch]:
    """The batches of the steps, in order, made ahead by worker processes."""
    keys = [[(number, step.size, step.epoch) for number in step.examples] for step in steps]
    return DataLoader(
        views,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_ignore_interrupt,
    )


def _ignore_interrupt(_worker: int) -> None:
    """Ctrl-C reaches the whole process group: the loop decides, and ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _collate(samples: list[tuple[Pixels, int]]) -> Batch:
    images = torch.from_numpy(np.stack([image for image, _ in samples]))
    return images, torch.tensor([label for _, label in samples])


def served_views(split: Split, examples: Sequence[Example], spec: ImageSpec) -> Pixels:
    """The pixels that the server would see, uint8 [N, crop, crop, 3]."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        views = pool.map(lambda example: load_pixels(split.read(example), spec), examples)
        return np.stack(list(views))
