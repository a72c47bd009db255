"""`python -m exporters --run DIR`: a checkpoint in, the next version of a verified bundle out."""

import argparse
import datetime
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

import msgspec
import torch

from exporters.source import Source, calibration_images, golden_samples, load_source
from exporters.to_int8 import quantize_int8
from exporters.to_onnx import OPSET, export_onnx
from exporters.verify import GATES, check_gate, golden_tolerance, measure, open_onnx
from packshot.bundle import GOLDEN, REPORT, EngineFile, Manifest, open_bundle, write_bundle
from packshot.errors import InvalidInput, PackshotError
from packshot.golden import GoldenSamples
from packshot.store import new_version
from packshot.terminate import interrupt_on_sigterm

ENGINES = ("fp32", "int8")
FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Raises InvalidInput, naming option, value and range."""

    run: Path
    data: Path | None
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
        if not 0 <= self.seed < 2**63:
            raise InvalidInput(f"--seed is {self.seed}; it must be from 0 to {2**63 - 1}")
        unknown = set(self.engines) - set(ENGINES)
        if unknown or "fp32" not in self.engines:
            raise InvalidInput(
                f"--engines is {','.join(self.engines)}; it must be fp32 or fp32,int8"
            )
        if not self.model or "/" in self.model or self.model.startswith("."):
            raise InvalidInput(f"--model is {self.model!r}; it must be a plain folder name")


def main() -> int:
    interrupt_on_sigterm()
    try:
        folder = export(parse_options())
    except PackshotError as error:
        print(f"exporters: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"exporters: nothing was written: {error}", file=sys.stderr)
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
    source = load_source(options.run, options.data)
    with new_version(options.models / options.model) as (version, folder):
        golden = golden_samples(source)
        (folder / GOLDEN).write_bytes(golden.to_bytes())
        engines = {"fp32": export_fp32(source, golden, folder)}
        left_out: dict[str, str] = {}
        if "int8" in options.engines:
            try:
                engines["int8"] = export_int8(source, golden, folder, options)
            except OSError:  # a full disk is no fault of the engine
                raise
            except Exception as error:
                # The proved fp32 stands, whatever went wrong on the way to a faster engine.
                (folder / FILES["int8"]).unlink(missing_ok=True)
                left_out["int8"] = str(error)
                print(f"WARNING: int8 is left out: {error}", flush=True)
        (folder / REPORT).write_bytes((options.run / REPORT).read_bytes())
        manifest = new_manifest(options.model, version, source, engines, left_out)
        write_bundle(folder, manifest)
        open_bundle(folder)  # as a server will: every hash is right
    return options.models / options.model / str(version)


def export_fp32(source: Source, golden: GoldenSamples, folder: Path) -> EngineFile:
    path = folder / FILES["fp32"]
    checkpoint = source.checkpoint
    metadata = {
        "packshot.labels": "\n".join(checkpoint.labels),
        "packshot.image": msgspec.json.encode(checkpoint.image).decode(),
        "packshot.weights_sha256": checkpoint.weights_sha256,
    }
    export_onnx(source.network, checkpoint.image, path, metadata)
    made_with = {"torch": str(torch.__version__), "opset": str(OPSET)}
    return gated("fp32", path, source, golden, made_with)


def export_int8(
    source: Source, golden: GoldenSamples, folder: Path, options: Options
) -> EngineFile:
    path = folder / FILES["int8"]
    images = calibration_images(source, options.calibration_images, options.seed)
    quantize_int8(folder / FILES["fp32"], path, images)
    made_with = {
        "onnxruntime": installed_version("onnxruntime"),
        "calibration": f"percentile, {len(images)} training images",
    }
    return gated("int8", path, source, golden, made_with)


def gated(
    name: str, path: Path, source: Source, golden: GoldenSamples, made_with: dict[str, str]
) -> EngineFile:
    """Measures the file with the server's engine. Raises AnswersDiffer if it fails its gate."""
    engine = open_onnx(path, name)
    measured = measure(engine, source.held_out)
    check_gate(name, measured, GATES[name])
    tolerance = golden_tolerance(engine, golden, GATES[name])
    engine.close()
    print(
        f"{name}: {path.stat().st_size / 1e6:.1f} MB; on {measured.images} held-out images top-1 "
        f"agreement {measured.agreement:.2%}, accuracy {measured.accuracy:.2%} (PyTorch "
        f"{measured.pytorch_accuracy:.2%}), largest |logit difference| "
        f"{measured.max_logit_difference:.2g}",
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
            "weights_from": checkpoint.weights.source,
            "pretrained": checkpoint.weights.pretrained,
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
    add("--data", type=Path, help="where the images are now, if not where they were in training")
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
