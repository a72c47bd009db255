"""Export: a trained network to the next version of a bundle, every engine proved on the way."""

import datetime
import tempfile
import time
from pathlib import Path

import msgspec
import torch

from exporters.command_line import ExportOptions
from exporters.making import FP32_FILE, Maker, make_all
from exporters.proof import Work, prove_onnx
from exporters.source import Source, calibration_images, golden_samples, load_source
from exporters.to_onnx import OPSET, export_onnx, metadata_of
from exporters.version import complete, peak_gigabytes, read_report
from packshot.bundle import GOLDEN, EngineFile, Manifest
from packshot.compiled_folder import home_expanded
from packshot.store import check_writable, new_version


def export(options: ExportOptions) -> Path:
    """Writes the next version of the model and returns its folder.

    Raises InvalidInput for a store that may not be written to, NotFound or DamagedFile for the
    checkpoint, AnswersDiffer if fp32 ONNX does not answer as PyTorch does or a required engine is
    left out. Nothing is left behind then.
    """
    started = time.monotonic()
    check_writable(options.models / options.model)
    source = load_source(options.run, options.data)
    report = read_report(options.run)  # before the work that would be lost without it
    with (
        new_version(options.models / options.model) as (version, folder),
        tempfile.TemporaryDirectory(prefix="packshot-export-") as workshop,
    ):
        work = Work(
            folder=folder,
            golden=golden_samples(source),
            held_out=source.held_out,
            temperature=source.checkpoint.temperature,
            gates=options.gates,
            compiled_folder=home_expanded(options.compiled_models),
        )
        (folder / GOLDEN).write_bytes(work.golden.to_bytes())
        engines = {"fp32": export_fp32(source, work)}
        maker = Maker(
            work,
            Path(workshop),
            plan=options.plan,
            logs=options.build_logs or options.run,
            images=lambda: calibration_images(source, options.calibration_images, options.seed),
        )
        made, left_out, _ = make_all(maker, options.engines, options.require)
        manifest = new_manifest(options, version, source, {**engines, **made}, left_out)
        complete(work, manifest, report, timed=manifest.engines)
    seconds = time.monotonic() - started
    print(f"exported in {seconds:.0f} s, with at most {peak_gigabytes():.1f} GB of memory")
    return options.models / options.model / str(version)


def export_fp32(source: Source, work: Work) -> EngineFile:
    path = work.folder / FP32_FILE
    checkpoint = source.checkpoint
    export_onnx(source.network, checkpoint.image, path, metadata_of(checkpoint))
    made_with = {"torch": str(torch.__version__), "opset": str(OPSET)}
    return prove_onnx(work, path, precision="fp32", made_with=made_with)


def new_manifest(
    options: ExportOptions,
    version: int,
    source: Source,
    engines: dict[str, EngineFile],
    left_out: dict[str, str],
) -> Manifest:
    checkpoint = source.checkpoint
    asked = options.min_confidence
    return Manifest(
        model=options.model,
        version=version,
        architecture=checkpoint.architecture,
        labels=checkpoint.labels,
        image=checkpoint.image,
        embedding_width=source.network.embedding_width,
        temperature=checkpoint.temperature,
        min_confidence=checkpoint.min_confidence if asked is None else asked,
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
