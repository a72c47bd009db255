"""The bundle: one immutable folder that holds a trained model in every form it is served in.

models/<name>/<version>/
  manifest.json     this module's Manifest: labels, image spec, engines, hashes, provenance
  labels.txt        one label a line; line number = class index
  golden.npz        images with PyTorch's answers (packshot.golden)
  model.onnx        fp32, always there
  model.int8.onnx   if it passed its gate
  model.trt-<precision>.<target>.plan  a TensorRT engine, if asked for, with its sidecar .plan.json
                    (packshot.plan); as many as there are GPUs to serve on
  calibration.json  the ranges that INT8 engines are made with
  report.html       the model card
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from packshot.errors import DamagedFile, NotFound
from packshot.golden import GoldenSamples, read_golden
from packshot.image import ImageSpec
from packshot.intervals import Interval
from packshot.record import decode_record
from packshot.store import MAX_VERSION

FORMAT = 1
MANIFEST = "manifest.json"
LABELS = "labels.txt"
GOLDEN = "golden.npz"
CALIBRATION = "calibration.json"
REPORT = "report.html"
PLAN = ".plan"
PLAN_KEYS = "trt-"
"""A plan's name in the manifest begins so: "trt-fp16.sm90"; its file is model.<name>.plan."""
SIDECAR = ".json"
"""A plan's sidecar has the plan's name with this behind it."""

INPUT = "images"
"""The engines' input: uint8 [N, crop, crop, 3], RGB."""
LOGITS = "logits"
"""Output: float32 [N, classes]."""
EMBEDDING = "embedding"
"""Output: float32 [N, embedding_width], what the classifying layer sees."""


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an engine's answers on images that were not trained on compare with PyTorch's.

    Shares and drops run from 0 to 1; accuracies are null where true labels were not at hand.
    """

    images: int
    agreement: float  # share of images with the same top-1
    agreement_interval: Interval
    accuracy: float | None
    pytorch_accuracy: float | None
    accuracy_drop_interval: Interval | None
    max_logit_difference: float
    mean_logit_difference: float
    kl_divergence: float  # of probabilities, PyTorch's from the engine's: mean over images, nats


class Attempt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A way to quantise that was tried, and why it was not kept: "" for the one that was."""

    way: str
    measured: Measured
    fault: str


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Median time of one run of `batch` images, where it was exported."""

    batch: int
    milliseconds: float

    @property
    def images_per_second(self) -> float:
        return self.batch / self.milliseconds * 1000


class EngineFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One form of the model. `tolerance`: the largest |logit difference| on golden samples.

    `proved_by`: what was run to measure it. "engine": the file itself. "source": the ONNX file
    that a plan was built from, on a CPU, because the plan's GPU was not at hand.
    """

    file: str
    precision: str
    tolerance: float
    measured: Measured
    proved_by: Literal["engine", "source"] = "engine"
    caveat: str = ""  # what so few images cannot tell
    attempts: tuple[Attempt, ...] = ()
    timings: tuple[Timing, ...] = ()
    timed_on: str = ""  # the processor
    made_with: dict[str, str]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle is.

    `engines` maps names ("fp32", "int8", "trt-fp16.sm90") to their files; `left_out` the names of
    those that did not pass to the reason.
    """

    format: int = FORMAT
    model: str
    version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
    architecture: str
    labels: tuple[str, ...]
    image: ImageSpec
    embedding_width: int
    temperature: float
    min_confidence: float = 0.0  # answers below abstain, unless a request says otherwise
    engines: dict[str, EngineFile]
    left_out: dict[str, str]
    files: dict[str, str]  # every other file of the bundle -> its sha256
    provenance: dict[str, Any]
    created: str  # UTC, ISO 8601


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle on disk, as `open_bundle` found it."""

    folder: Path
    manifest: Manifest

    def engine_path(self, engine: str) -> Path:
        return self.folder / self.manifest.engines[engine].file

    def golden(self) -> GoldenSamples:
        return read_golden((self.folder / GOLDEN).read_bytes())


def open_bundle(folder: Path, *, engines: bool = True) -> Bundle:
    """Reads the manifest and checks every file against its hash.

    Without `engines` their files are left to who opens one, by `check_file`: they are nearly all of
    a bundle, and few of them will be read. A plan's sidecar, which has the plan's hash, is checked.
    Raises NotFound if there is no bundle in `folder`, DamagedFile if it is not what it says.
    """
    manifest = read_manifest(folder)
    left_out = set() if engines else {engine.file for engine in manifest.engines.values()}
    for fault in file_faults(folder, manifest, left_out):
        raise DamagedFile(fault)
    return Bundle(folder=folder, manifest=manifest)


def file_faults(folder: Path, manifest: Manifest, left_out: Collection[str] = ()) -> Iterator[str]:
    """What is wrong with the files, one after the other: not listed, missing, changed."""
    if unlisted := sorted(_needed(manifest) - manifest.files.keys()):
        yield f"{folder / MANIFEST} has no hash of {', '.join(unlisted)}: export again"
    for name, expected in manifest.files.items():
        if name not in left_out and (fault := _file_fault(folder / name, expected)):
            yield fault


def check_file(path: Path, sha256: str) -> None:
    """Raises DamagedFile if the file is missing, unreadable or another one."""
    if fault := _file_fault(path, sha256):
        raise DamagedFile(fault)


def _file_fault(path: Path, expected: str) -> str | None:
    if not path.is_file():
        return f"{path} is missing: copy the bundle again or export a new version"
    try:
        actual = sha256_of(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if actual == expected:
        return None
    return (
        f"{path} has sha256 {actual[:12]}, the manifest says {expected[:12]}: "
        "copy the bundle again or export a new version"
    )


def _needed(manifest: Manifest) -> set[str]:
    """Every file that will be read."""
    files = {engine.file for engine in manifest.engines.values()}
    sidecars = {file + SIDECAR for file in files if file.endswith(PLAN)}
    return {GOLDEN, LABELS, *files, *sidecars}


def read_manifest(folder: Path) -> Manifest:
    """Raises NotFound or DamagedFile."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFound(f"no bundle in {folder}: {error.strerror}") from error
    return decode_record(content, Manifest, path=path, what="bundle manifest", reads=FORMAT)


def write_bundle(folder: Path, manifest: Manifest) -> Manifest:
    """Adds labels and manifest to a folder that holds the other files; returns what was written."""
    (folder / LABELS).write_text(labels_text(manifest.labels), encoding="utf-8")
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    manifest = msgspec.structs.replace(manifest, files=hashes)
    (folder / MANIFEST).write_bytes(to_json(manifest))
    return manifest


def labels_text(labels: Iterable[str]) -> str:
    """What labels.txt holds."""
    return "".join(f"{label}\n" for label in labels)


def to_json(record: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
