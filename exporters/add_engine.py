"""Add an engine: the next version of a bundle, with what this machine can build.

The rest is shared. Meant for a machine with the GPU that will serve: it needs neither PyTorch nor
the training run.
"""

import datetime
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from exporters.command_line import AddOptions
from exporters.gates import HeldOut
from exporters.int8_search import read_ways
from exporters.making import Maker, make_all
from exporters.proof import Work
from exporters.version import complete, read_report
from packshot.bundle import (
    CALIBRATION,
    LABELS,
    REPORT,
    Bundle,
    EngineFile,
    Manifest,
    open_bundle,
)
from packshot.compiled_folder import home_expanded
from packshot.errors import AnswersDiffer, InvalidInput
from packshot.image import Pixels
from packshot.store import check_writable, current_version, new_version, share
from serving.engines.openvino import INT8, PRECISIONS

WRITTEN_ANEW = (LABELS, REPORT)


def add_engine(options: AddOptions) -> Path:
    """Writes the next version and returns its folder.

    Raises NotFound or DamagedFile for the version to start from, InvalidInput for another's run,
    AnswersDiffer if no engine that was asked for passes, or all are there. Nothing is left behind
    then.
    """
    model = options.models / options.model
    asked = current_version(model) if options.version is None else options.version
    base = open_bundle(model / str(asked))
    report = read_report(base.folder)
    ways = base.folder / CALIBRATION
    known = read_ways(ways) if ways.exists() else None
    check_writable(model)
    at_hand = _images_at_hand(options, base)
    stay = _proved_before(options, base)
    for name, why in stay.items():
        print(f"{name} stays as it is: {why}", flush=True)
    asked_for = [name for name in options.engines if name not in stay]
    required = [name for name in options.require if name not in stay]
    with (
        new_version(model) as (version, folder),
        tempfile.TemporaryDirectory(prefix="packshot-export-") as workshop,
    ):
        unchanged = [name for name in base.manifest.files if name not in WRITTEN_ANEW]
        share(unchanged, base.folder, folder)
        work = Work(
            folder=folder,
            golden=base.golden(),
            held_out=at_hand.held_out,
            temperature=base.manifest.temperature,
            gates=options.gates,
            compiled_folder=home_expanded(options.compiled_models),
        )
        maker = Maker(
            work,
            Path(workshop),
            plan=options.plan,
            logs=options.build_logs,
            images=at_hand.to_calibrate,
            ways=known,
        )
        made, left_out, not_here = make_all(maker, asked_for, required)
        if not made:
            told = "; ".join(f"{name}: {why}" for name, why in {**stay, **left_out}.items())
            raise AnswersDiffer(
                f"no engine was added: {told or 'none that was asked for runs here'}"
            )
        tried = [name for name in options.engines if name not in not_here]
        manifest = next_manifest(base.manifest, version, made, tried, left_out)
        complete(work, manifest, report, timed=made)
    return model / str(version)


def next_manifest(
    before: Manifest,
    version: int,
    made: dict[str, EngineFile],
    tried: Sequence[str],
    left_out: dict[str, str],
) -> Manifest:
    """With what was made; of what was left out before, only what still holds."""
    engines = {**before.engines, **made}
    left_out_before = dict(before.left_out)
    if "int8" in made and INT8 not in made:  # what was known of it was of another file
        engines.pop(INT8, None)
        left_out_before.pop(INT8, None)
    return msgspec.structs.replace(
        before,
        version=version,
        engines=engines,
        left_out={
            name: why
            for name, why in {**left_out_before, **left_out}.items()
            if name not in engines and (name in left_out or name not in tried)
        },
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _proved_before(options: AddOptions, base: Bundle) -> dict[str, str]:
    """What was asked for and stays as it is, and why: OpenVINO's, which run a file that is there.

    Golden samples tell less than what was measured; without the run no INT8 file is made anew.
    """
    if options.run is not None:
        return {}
    there = base.manifest.engines
    return {
        name: f"version {base.manifest.version} has it, measured on {there[name].measured.images} "
        "images (--run measures it anew)"
        for name in options.engines
        if name in PRECISIONS and name in there
    }


class AtHand(NamedTuple):
    """What engines are judged by, and what INT8 is calibrated with: None without the run."""

    held_out: HeldOut
    to_calibrate: Callable[[], Pixels] | None


def _images_at_hand(options: AddOptions, base: Bundle) -> AtHand:
    """Of the training run, if it is given, else the golden samples: few, and without truth."""
    if options.run is None:
        golden = base.golden()
        count = len(golden.pixels)
        print(f"no --run: the {count} golden samples stand for held-out images", flush=True)
        return AtHand(HeldOut(images=golden.pixels, logits=golden.logits), None)
    from exporters.source import calibration_images, load_source  # PyTorch, not needed without
    from trainer.checkpoint import read_record

    if read_record(options.run).weights_sha256 != base.manifest.provenance.get("weights_sha256"):
        raise InvalidInput(
            f"version {base.manifest.version} was not exported from the run in {options.run}, "
            "whose weights are others: name its run, or leave --run out"
        )
    source = load_source(options.run, options.data)
    return AtHand(
        source.held_out,
        lambda: calibration_images(source, options.calibration_images, options.seed),
    )
