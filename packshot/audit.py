"""Everything about a bundle on disk that can be checked without running an engine.

Hashes, sidecars of plans, the number of labels, and that this machine decodes the golden samples
to the pixels of training. That the engines give the right answers is for the server to prove, on
the machine that serves: `python -m serving --check`.
"""

from collections.abc import Iterator
from pathlib import Path

from packshot.bundle import (
    GOLDEN,
    LABELS,
    MANIFEST,
    PLAN,
    Manifest,
    file_faults,
    labels_text,
    read_manifest,
)
from packshot.errors import PackshotError
from packshot.golden import GoldenSamples, check_pixels, read_golden
from packshot.plan import read_sidecar, sidecar_path
from packshot.resizing import PACKAGE, is_installed


def faults(folder: Path) -> list[str]:
    """Every fault of the bundle in `folder`, in words; none if all is well."""
    try:
        manifest = read_manifest(folder)
    except PackshotError as error:
        return [str(error)]
    return [
        *_place_faults(folder, manifest),
        *file_faults(folder, manifest),
        *_stray_faults(folder, manifest),
        *_label_faults(folder, manifest),
        *_plan_faults(folder, manifest),
        *_golden_faults(folder, manifest),
    ]


def not_tried(folder: Path) -> str:
    """What `faults` leaves to the server, in words."""
    if is_installed(read_manifest(folder).image.resizer):
        return "engines were not run"
    return f"engines were not run, golden images not decoded: {PACKAGE} is not installed here"


def _place_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    if (manifest.model, str(manifest.version)) != (folder.parent.name, folder.name):
        yield (
            f"{folder} holds version {manifest.version} of {manifest.model!r}: put it in its place"
        )


def _stray_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if path.name not in {MANIFEST, *manifest.files}:
            yield f"{path} is not part of the bundle: move it elsewhere"


def _label_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    path = folder / LABELS
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:  # said already
        return
    except (OSError, UnicodeDecodeError) as error:
        yield f"{path} cannot be read: {error}"
        return
    if text != labels_text(manifest.labels):
        yield f"{path} has other labels than the manifest: export a new version"


def _plan_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    files = (engine.file for engine in manifest.engines.values())
    for plan in sorted({folder / file for file in files if file.endswith(PLAN)}):
        path = sidecar_path(plan)
        if not path.exists():  # said already
            continue
        try:
            sidecar = read_sidecar(path)
        except PackshotError as error:
            yield str(error)
            continue
        if sidecar.sha256 != manifest.files.get(plan.name):
            yield f"{path} describes another plan than {plan.name}: export a new version"


def _golden_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    path = folder / GOLDEN
    if not path.exists():  # said already
        return
    try:
        golden = read_golden(path.read_bytes())
        yield from _shape_faults(path, golden, manifest)
        if golden.pixels.shape[1:] == manifest.image.shape and is_installed(manifest.image.resizer):
            check_pixels(golden, manifest.image)
    except (PackshotError, OSError) as error:
        yield f"{path}: {error}"


def _shape_faults(path: Path, golden: GoldenSamples, manifest: Manifest) -> Iterator[str]:
    if golden.pixels.shape[1:] != manifest.image.shape:
        yield (
            f"{path} has pixels {list(golden.pixels.shape[1:])}, the manifest's image spec gives "
            f"{list(manifest.image.shape)}"
        )
    if golden.logits.shape[1:] != (len(manifest.labels),):
        yield (
            f"{path} has {golden.logits.shape[-1]} logits an image, the manifest "
            f"{len(manifest.labels)} labels"
        )
