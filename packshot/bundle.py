"""The bundle: one immutable folder that holds a trained model in every form it is served in.

models/<name>/<version>/
  manifest.json     this module's Manifest: labels, image spec, engines, hashes, provenance
  labels.txt        one label a line; line number = class index
  golden.npz        images with PyTorch's answers (packshot.golden)
  model.onnx        fp32, always there
  model.int8.onnx   if it passed its gate
  model.trt-<precision>.<target>.plan  a TensorRT engine, if asked for, with its sidecar .plan.json
                    (packshot.plan); as many as there are GPUs to serve on
  report.html       the model card
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from packshot.errors import DamagedFile, NotFound
from packshot.golden import GoldenSamples, read_golden
from packshot.image import ImageSpec

FORMAT = 1
MANIFEST = "manifest.json"
LABELS = "labels.txt"
GOLDEN = "golden.npz"
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
    """How an engine's answers on the held-out images compare with PyTorch's."""

    images: int
    agreement: float  # share of images with the same top-1
    accuracy: float
    pytorch_accuracy: float
    max_logit_difference: float
    mean_logit_difference: float


class EngineFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One form of the model. `tolerance`: the largest |logit difference| on golden samples."""

    file: str
    precision: str
    tolerance: float
    measured: Measured
    made_with: dict[str, str]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle is. `engines` maps names ("fp32", "int8", "trt-fp16.sm90") to their files."""

    format: int = FORMAT
    model: str
    version: int
    architecture: str
    labels: tuple[str, ...]
    image: ImageSpec
    embedding_width: int
    temperature: float
    min_confidence: float = 0.0  # answers below abstain, unless a request says otherwise
    engines: dict[str, EngineFile]
    left_out: dict[str, str]  # engine name -> why it did not pass
    files: dict[str, str]  # every other file of the bundle -> its sha256
    provenance: dict[str, Any]
    created: str  # UTC, ISO 8601


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle on disk whose hashes were checked."""

    folder: Path
    manifest: Manifest

    def engine_path(self, engine: str) -> Path:
        return self.folder / self.manifest.engines[engine].file

    def golden(self) -> GoldenSamples:
        return read_golden((self.folder / GOLDEN).read_bytes())


def open_bundle(folder: Path) -> Bundle:
    """Reads the manifest and checks every file against its hash.

    Raises NotFound if there is no bundle in `folder`, DamagedFile if it is not what it says.
    """
    manifest = read_manifest(folder)
    _check_listed(folder, manifest)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedFile(f"{path} is missing: copy the bundle again or export a new version")
        try:
            actual = sha256_of(path)
        except OSError as error:
            raise DamagedFile(f"{path} cannot be read: {error.strerror}") from error
        if actual != expected:
            raise DamagedFile(
                f"{path} has sha256 {actual[:12]}, the manifest says {expected[:12]}: "
                "copy the bundle again or export a new version"
            )
    return Bundle(folder=folder, manifest=manifest)


def _check_listed(folder: Path, manifest: Manifest) -> None:
    """Every file that will be read has a hash."""
    files = {engine.file for engine in manifest.engines.values()}
    sidecars = {file + SIDECAR for file in files if file.endswith(PLAN)}
    needed = {GOLDEN, LABELS, *files, *sidecars}
    if unlisted := sorted(needed - manifest.files.keys()):
        raise DamagedFile(f"{folder / MANIFEST} has no hash of {', '.join(unlisted)}: export again")


def read_manifest(folder: Path) -> Manifest:
    """Raises NotFound or DamagedFile."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFound(f"no bundle in {folder}: {error.strerror}") from error
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.MsgspecError as error:
        raise DamagedFile(f"{path} is not a bundle manifest of format {FORMAT}: {error}") from error
    if manifest.format != FORMAT:
        raise DamagedFile(
            f"{path} has format {manifest.format}; this packshot reads format {FORMAT}"
        )
    return manifest


def write_bundle(folder: Path, manifest: Manifest) -> Manifest:
    """Adds labels and manifest to a folder that holds the other files; returns what was written."""
    (folder / LABELS).write_text(
        "".join(f"{label}\n" for label in manifest.labels), encoding="utf-8"
    )
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    manifest = msgspec.structs.replace(manifest, files=hashes)
    (folder / MANIFEST).write_bytes(to_json(manifest))
    return manifest


def to_json(record: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
