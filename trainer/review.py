"""What is worth knowing about the data before the first step is paid for."""

from collections.abc import Sequence

import msgspec
import numpy as np

from packshot.image import ImageSpec, view_box
from trainer.data import Example, Split
from trainer.scan import PARTS

FEW_IMAGES = 500
FEW_A_CLASS = 20
IMBALANCED = 10  # the largest class, in images of the smallest
LEAST_SHOWN = 0.5  # of a picture's long side, by the centre crop
CUT_SHARE = 0.1  # of the images: fewer that are cut are not told
NAMED = 3


def review(split: Split, spec: ImageSpec) -> tuple[str, ...]:
    """Warnings, each with the figure that it is about and a remedy; none for good data."""
    found = (
        _few_images(split),
        _few_a_class(split),
        _imbalance(split),
        _cut(split, spec),
        _leakage(split),
        _conflicts(split),
    )
    return tuple(text for text in found if text)


def reviewed(split: Split, spec: ImageSpec) -> Split:
    """The split with what `review` finds among its warnings."""
    return msgspec.structs.replace(split, warnings=split.warnings + review(split, spec))


def data_figures(split: Split) -> dict[str, object]:
    """What a log says of the data; the files themselves are in the split."""
    return {
        "fingerprint": split.fingerprint,
        "images": {part: len(getattr(split, part)) for part in PARTS},
        "train_counts": dict(zip(split.labels, split.train_counts, strict=True)),
        "damaged": len(split.damaged),
        "exact_copies": len(split.duplicates.exact),
        "near_copies": len(split.duplicates.near),
        "leaked": len(split.leaked),
        "conflicting": len(split.conflicting),
        "warnings": split.warnings,
    }


def _few_images(split: Split) -> str:
    if len(split.examples) >= FEW_IMAGES:
        return ""
    return (
        f"{len(split.examples)} images are few: from {FEW_IMAGES} up fine-tuning is dependable; "
        "add images, or prefer a small network (--arch resnet18) and read the intervals"
    )


def _few_a_class(split: Split) -> str:
    few = [
        f"{label} ({count})"
        for label, count in zip(split.labels, split.train_counts, strict=True)
        if count < FEW_A_CLASS
    ]
    if not few:
        return ""
    return (
        f"of {len(split.labels)} classes {len(few)} with under {FEW_A_CLASS} images to train on: "
        f"{_some(few)}; add images or merge classes"
    )


def _imbalance(split: Split) -> str:
    counts = split.train_counts
    most, least = int(np.argmax(counts)), int(np.argmin(counts))
    if counts[most] <= IMBALANCED * counts[least]:
        return ""
    return (
        f"classes are {counts[most] / counts[least]:.0f} to 1 out of balance in train: "
        f"{split.labels[most]} has {counts[most]} images, {split.labels[least]} {counts[least]}; "
        "try --class-weights sqrt or --sampler balanced, and judge by macro-F1"
    )


def _cut(split: Split, spec: ImageSpec) -> str:
    if spec.fit == "pad":
        return ""
    cut = [example for example in split.examples if _shown(example, spec) < LEAST_SHOWN]
    if len(cut) <= CUT_SHARE * len(split.examples):
        return ""
    worst = min(cut, key=lambda example: _shown(example, spec))
    return (
        f"{len(cut)} of {len(split.examples)} images are so long that the centre crop shows less "
        f"than half of them: of {worst.file} ({worst.width}x{worst.height}) it shows "
        f"{_shown(worst, spec):.0%}; show images whole (--fit pad), or crop them around the product"
    )


def _shown(example: Example, spec: ImageSpec) -> float:
    """Share of the long side that the network sees; 1.0 where the size is not on record."""
    if not example.width or not example.height:
        return 1.0
    left, top, right, bottom = view_box((example.width, example.height), spec)
    return min((right - left) / example.width, (bottom - top) / example.height)


def _leakage(split: Split) -> str:
    if not split.leaked:
        return ""
    files = sum(len(group) for group in split.leaked)
    return (
        f"leakage: {len(split.leaked)} picture(s), {files} files, in more than one of train, val "
        f"and test: {_groups(split.leaked)}; figures will flatter: keep the copies in one part"
    )


def _conflicts(split: Split) -> str:
    if not split.conflicting:
        return ""
    return (
        f"label conflict: {len(split.conflicting)} picture(s) with more than one label: "
        f"{_groups(split.conflicting)}; one of the labels is wrong, or the classes overlap: "
        "remove the wrong copies"
    )


def _groups(groups: Sequence[Sequence[str]]) -> str:
    return _some([" = ".join(group[:NAMED]) for group in groups])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
