"""`python -m exporters --run DIR`: a checkpoint in, the next version of a verified bundle out."""

import argparse
import datetime
import sys
import time
from importlib.metadata import version as installed_version
from pathlib import Path

import msgspec
import numpy as np
import torch

from exporters.to_int8 import quantize_int8
from exporters.to_onnx import OPSET, export_onnx
from exporters.verify import GATES, HeldOut, check_gate, golden_tolerance, measure, open_onnx
from packshot.bundle import GOLDEN, REPORT, EngineFile, Manifest, open_bundle, write_bundle
from packshot.errors import AnswersDiffer, InvalidInput, PackshotError
from packshot.golden import GoldenSamples, make_golden
from packshot.store import new_version
from trainer.checkpoint import Checkpoint, load_checkpoint, load_split_of
from trainer.data import Example, Split, served_views
from trainer.evaluate import predict
from trainer.model import PixelNetwork

GOLDEN_IMAGES = 16
ENGINES = ("fp32", "int8")
FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Raises InvalidInput, naming option, value and range."""

    run: Path
    models: Path
    model: str
    engines: tuple[str, ...]
    calibration_images: int
    seed: int

    def __post_init__(self) -> None:
        if not 8 <= self.calibration_images <= 1000:
            raise InvalidInput(
                f"--calibration-images is {self.calibration_images}; it must be from 8 to 1000"
            )
        unknown = set(self.engines) - set(ENGINES)
        if unknown or "fp32" not in self.engines:
            raise InvalidInput(
                f"--engines is {','.join(self.engines)}; it must be fp32 or fp32,int8"
            )
        if not self.model or "/" in self.model or self.model.startswith("."):
            raise InvalidInput(f"--model is {self.model!r}; it must be a plain folder name")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What is exported: the trained network with the data that its exports are checked on."""

    checkpoint: Checkpoint
    network: PixelNetwork
    split: Split
    held_out: HeldOut


def main() -> int:
    try:
        folder = export(parse_options())
    except PackshotError as error:
        print(f"exporters: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"exporters: nothing was written: {error.strerror} ({error.filename})", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("exporters: interrupted, nothing was written", file=sys.stderr)
        return 130
    print(f"bundle in {folder}")
    return 0


def export(options: Options) -> Path:
    """Writes the next version of the model and returns its folder.

    Raises NotFound or DamagedFile for the checkpoint, AnswersDiffer if fp32 ONNX does not answer
    as PyTorch does. Nothing is left behind then.
    """
    source = load_source(options.run)
    with new_version(options.models / options.model) as (version, folder):
        golden = write_golden(source, folder)
        engines = {"fp32": export_fp32(source, golden, folder)}
        left_out: dict[str, str] = {}
        if "int8" in options.engines:
            try:
                engines["int8"] = export_int8(source, golden, folder, options)
            except AnswersDiffer as error:
                (folder / FILES["int8"]).unlink()
                left_out["int8"] = str(error)
                print(f"WARNING: left out: {error}", flush=True)
        (folder / REPORT).write_bytes((options.run / REPORT).read_bytes())
        manifest = new_manifest(options.model, version, source, engines, left_out)
        write_bundle(folder, manifest)
        open_bundle(folder)  # as a server will: every hash is right
    return options.models / options.model / str(version)


def load_source(run: Path) -> Source:
    """Raises NotFound or DamagedFile."""
    checkpoint, network = load_checkpoint(run)
    split = load_split_of(run, checkpoint)
    examples = split.held_out
    print(f"computing PyTorch's answers on {len(examples)} held-out images", flush=True)
    images = served_views(split, examples, checkpoint.image)
    held_out = HeldOut(
        images=images,
        truth=np.array([example.label for example in examples], np.int64),
        logits=predict(network, images),
    )
    return Source(checkpoint=checkpoint, network=network, split=split, held_out=held_out)


def write_golden(source: Source, folder: Path) -> GoldenSamples:
    """Golden samples from held-out images, the classes in turn."""
    by_turn = sorted(source.split.held_out, key=lambda example: hash_order(source.split, example))
    chosen = by_turn[:GOLDEN_IMAGES]
    golden = make_golden(
        [source.split.read(example) for example in chosen],
        source.checkpoint.image,
        lambda images: predict(source.network, images),
    )
    (folder / GOLDEN).write_bytes(golden.to_bytes())
    return golden


def hash_order(split: Split, example: Example) -> tuple[int, int]:
    """Sorts the first image of every class before the second of any."""
    same_class = [other for other in split.held_out if other.label == example.label]
    return (same_class.index(example), example.label)


def export_fp32(source: Source, golden: GoldenSamples, folder: Path) -> EngineFile:
    started = time.monotonic()
    path = folder / FILES["fp32"]
    checkpoint = source.checkpoint
    metadata = {
        "packshot.labels": "\n".join(checkpoint.labels),
        "packshot.image": msgspec.json.encode(checkpoint.image).decode(),
        "packshot.weights_sha256": checkpoint.weights_sha256,
    }
    export_onnx(source.network, checkpoint.image, path, metadata)
    made_with = {"torch": str(torch.__version__), "opset": str(OPSET)}
    return gated("fp32", path, source, golden, made_with, started)


def export_int8(
    source: Source, golden: GoldenSamples, folder: Path, options: Options
) -> EngineFile:
    started = time.monotonic()
    path = folder / FILES["int8"]
    rng = np.random.default_rng(options.seed)
    train = source.split.train
    count = min(options.calibration_images, len(train))
    chosen = [train[i] for i in rng.choice(len(train), count, replace=False)]
    images = served_views(source.split, chosen, source.checkpoint.image)
    quantize_int8(folder / FILES["fp32"], path, images)
    made_with = {
        "onnxruntime": installed_version("onnxruntime"),
        "calibration": f"percentile, {count} training images",
    }
    return gated("int8", path, source, golden, made_with, started)


def gated(
    name: str,
    path: Path,
    source: Source,
    golden: GoldenSamples,
    made_with: dict[str, str],
    started: float,
) -> EngineFile:
    """Measures the file with the server's engine. Raises AnswersDiffer if it fails its gate."""
    engine = open_onnx(path, name)
    measured = measure(engine, source.held_out)
    check_gate(name, measured, GATES[name])
    tolerance = golden_tolerance(engine, golden, GATES[name])
    engine.close()
    print(
        f"{name}: {path.stat().st_size / 1e6:.1f} MB in {time.monotonic() - started:.0f} s; on "
        f"{measured.images} held-out images: top-1 agreement {measured.agreement:.2%}, accuracy "
        f"{measured.accuracy:.2%} (PyTorch {measured.pytorch_accuracy:.2%}), largest |logit "
        f"difference| {measured.max_logit_difference:.2g}",
        flush=True,
    )
    return EngineFile(
        file=path.name, precision=name, tolerance=tolerance, measured=measured, made_with=made_with
    )


def new_manifest(
    model: str,
    version: int,
    source: Source,
    engines: dict[str, EngineFile],
    left_out: dict[str, str],
) -> Manifest:
    checkpoint = source.checkpoint
    return Manifest(
        model=model,
        version=version,
        architecture=checkpoint.architecture,
        labels=checkpoint.labels,
        image=checkpoint.image,
        embedding_width=source.network.embedding_width,
        temperature=checkpoint.temperature,
        engines=engines,
        left_out=left_out,
        files={},
        provenance={
            "data_fingerprint": checkpoint.data_fingerprint,
            "weights_from": checkpoint.weights_from,
            "weights_sha256": checkpoint.weights_sha256,
            "recipe": msgspec.to_builtins(checkpoint.recipe),
            "seed": checkpoint.seed,
            "versions": checkpoint.versions,
        },
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def parse_options(arguments: list[str] | None = None) -> Options:
    """Raises InvalidInput for a value out of its range."""
    parser = argparse.ArgumentParser(
        prog="python -m exporters",
        description="Export a checkpoint to a bundle, and prove that its answers stayed the same.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--run", type=Path, default=Path("runs/products"), help="folder of the training run")
    add("--models", type=Path, default=Path("models"), help="bundle store to write to")
    add("--model", default="products", help="name of the model in the store")
    add(
        "--engines",
        type=lambda text: tuple(part for part in text.split(",") if part),
        default=",".join(ENGINES),
        help="what to export",
    )
    add("--calibration-images", type=int, default=64, help="training images to calibrate INT8 with")
    add("--seed", type=int, default=0, help="chooses the calibration images")
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    raise SystemExit(main())
