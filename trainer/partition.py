"""Which image is trained on and which is held out: seeded, by class, copies together."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from packshot.errors import InvalidInput
from trainer.duplicates import Duplicates
from trainer.recipes import Options
from trainer.scan import Found

Parts = dict[str, list[str]]
"""Files by part: "train", "val" and "test"."""


def partition(
    found: Found, usable: Iterable[str], duplicates: Duplicates, options: Options
) -> tuple[Parts, tuple[str, ...]]:
    """Files by part, and warnings. Parts that were given stay; what is missing is split off train.

    Copies of a picture stay together, also those of different classes: held out and trained on at
    once, they would flatter. Raises InvalidInput for a class with too few usable images.
    """
    sound = set(usable)
    group_of = {file: group for group in duplicates.groups for file in group}
    shares = {"val": options.val_share, "test": options.test_share}
    missing = {part: share for part, share in shares.items() if part not in found.parts}
    parts: Parts = {part: [] for part in ("train", *shares)}
    placed: dict[str, str] = {}  # file -> the part that a copy of it has been put into
    warnings: list[str] = []
    for index, label in enumerate(found.labels):
        for part in found.parts.keys() - {"train"}:
            parts[part] += [file for file in found.parts[part].get(label, []) if file in sound]
        files = [file for file in found.parts["train"][label] if file in sound]
        groups = _groups(files, group_of)
        if missing and len(groups) == 1 < len(files):
            groups = [[file] for file in files]
            warnings.append(
                f"the {len(files)} images of {label!r} are copies of one another: figures for this "
                "class will flatter; add different pictures"
            )
        order = np.random.default_rng([options.seed, index]).permutation(len(groups))
        divided = _divided(label, [groups[i] for i in order], missing, placed)
        for part, names in divided.items():
            parts[part] += sorted(names)
            placed |= {copy: part for name in names for copy in group_of.get(name, ())}
    return parts, tuple(warnings)


def _groups(files: Sequence[str], group_of: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """The files, copies of a picture together."""
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(group_of.get(file, (file,))[0], []).append(file)
    return list(groups.values())


def _divided(
    label: str, groups: Sequence[list[str]], missing: Mapping[str, float], placed: Mapping[str, str]
) -> Parts:
    """The groups of one class by part: a share for each missing part, the rest for train.

    A group that is larger than a part's share is trained on, if there is another to hold out.
    """
    files = sum(len(group) for group in groups)
    if not groups or ("val" in missing and len(groups) < 2):
        raise InvalidInput(
            f"class {label!r} has {files} usable image(s) to train on; it needs one to train on "
            "and another to validate with: add images or remove the class"
        )
    divided: Parts = {part: [] for part in ("train", *missing)}
    free = []
    for group in groups:
        if (part := placed.get(group[0], "")) in divided:  # with its copies of another class
            divided[part] += group
        else:
            free.append(group)
    for part, share in missing.items():
        wanted = max(1, round(files * share))
        for group in sorted(free, key=lambda group: len(group) > wanted):  # stable: in given order
            room = wanted - len(divided[part])
            last = len(free) == 1 and not divided["train"]
            if last or (divided[part] and len(group) > room) or room <= 0:
                continue
            divided[part] += group
            free.remove(group)
    divided["train"] += [file for group in free for file in group]
    return divided
