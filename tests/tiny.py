"""A bundle made in milliseconds without torch: a real ONNX network that tells colours apart.

Its embedding is the mean colour of the image, its logits the means over 25.5, so that a test can
compute every answer by hand.
"""

import io
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from packshot.bundle import (
    EMBEDDING,
    GOLDEN,
    INPUT,
    LOGITS,
    EngineFile,
    Manifest,
    Measured,
    read_manifest,
    to_json,
    write_bundle,
)
from packshot.golden import make_golden
from packshot.image import ImageSpec
from packshot.plan import PlanSidecar, sidecar_path
from packshot.store import new_version

LABELS = ("red", "green", "blue")
SCALE = np.float32(1 / 25.5)
PURE = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}


def jpeg(colour: tuple[int, int, int], size: tuple[int, int] = (300, 260)) -> bytes:
    return encoded(Image.new("RGB", size, colour), "JPEG", quality=95)


@cache
def big_image() -> bytes:
    """Takes a while to decode."""
    noise = np.random.default_rng(0).integers(0, 255, (1400, 1400, 3), np.uint8)
    return encoded(Image.fromarray(noise), "PNG")


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def reference(images: np.ndarray, sign: int = 1) -> np.ndarray:
    """The network's logits, computed by NumPy."""
    return images.astype(np.float32).mean(axis=(1, 2)) * SCALE * sign


def colour_network(sign: int = 1, embedding: str = EMBEDDING) -> bytes:
    """With `sign` -1 it prefers the wrong colours; `embedding` names its second output."""
    constants = {
        "space": np.array([1, 2], np.int64),
        "scale": np.eye(3, dtype=np.float32) * SCALE * sign,
    }
    graph = helper.make_graph(
        [
            helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "space"], [embedding], keepdims=0),
            helper.make_node("MatMul", [embedding, "scale"], [LOGITS]),
        ],
        "colours",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", 224, 224, 3])],
        [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info(embedding, TensorProto.FLOAT, ["N", 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def engine_file(file: str, precision: str = "fp32") -> EngineFile:
    measured = Measured(
        images=3, agreement=1.0, agreement_interval=(0.44, 1.0), accuracy=1.0,
        pytorch_accuracy=1.0, accuracy_drop_interval=(-0.48, 0.48), max_logit_difference=0.0,
        mean_logit_difference=0.0, kl_divergence=0.0,
    )  # fmt: skip
    return EngineFile(
        file=file, precision=precision, tolerance=1e-3, measured=measured, made_with={}
    )


def write_plan(path: Path, plan: bytes, described: PlanSidecar) -> Path:
    path.write_bytes(plan)
    sidecar_path(path).write_bytes(to_json(described))
    return path


def overwrite(path: Path, content: bytes) -> None:
    """Damages a file of a bundle as a bad copy would: under its name only, though read-only."""
    path.unlink()
    path.write_bytes(content)


def tiny_bundle(
    store: Path,
    name: str = "colours",
    *,
    int8: bytes | None = None,
    plans: dict[str, tuple[bytes, PlanSidecar]] | None = None,
    min_confidence: float = 0.0,
    temperature: float = 1.0,
    image: ImageSpec = ImageSpec(),
) -> Path:
    """Adds a version to the store, with these engines beside fp32; returns its folder.

    `plans`: by their name in the manifest.
    """
    engines = {"fp32": engine_file("model.onnx")}
    with new_version(store / name) as (version, folder):
        (folder / "model.onnx").write_bytes(colour_network())
        if int8 is not None:
            (folder / "model.int8.onnx").write_bytes(int8)
            engines["int8"] = engine_file("model.int8.onnx", "int8")
        for key, plan in (plans or {}).items():
            path = write_plan(folder / f"model.{key}.plan", *plan)
            engines[key] = engine_file(path.name, "fp16")
        golden = make_golden([jpeg(colour) for colour in PURE.values()], image, reference)
        (folder / GOLDEN).write_bytes(golden.to_bytes())
        manifest = Manifest(
            model=name, version=version, architecture="colours", labels=LABELS, image=image,
            embedding_width=3, temperature=temperature, min_confidence=min_confidence,
            engines=engines, left_out={}, files={}, provenance={}, created="2026-11-21T00:00:00Z",
        )  # fmt: skip
        write_bundle(folder, manifest)
    return store / name / str(version)


def change_manifest(folder: Path, **changes: object) -> Path:
    """Of a version that nobody serves yet; returns its folder."""
    manifest = read_manifest(folder)
    (folder / "manifest.json").unlink()
    write_bundle(folder, msgspec.structs.replace(manifest, **changes))
    return folder


def add_openvino(folder: Path, tolerance: float = 1.0) -> Path:
    """What an exporter on a CPU for OpenVINO adds to a bundle of fp32 and int8."""
    made_with = {"openvino": "2026.4"}
    added = {
        "openvino-bf16": engine_file("model.onnx", "bf16"),
        "openvino-int8": engine_file("model.int8.onnx", "int8"),
    }
    engines = {
        name: msgspec.structs.replace(file, tolerance=tolerance, made_with=made_with)
        for name, file in added.items()
    }
    return change_manifest(folder, engines={**read_manifest(folder).engines, **engines})
