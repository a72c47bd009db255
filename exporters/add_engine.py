"""Add an engine: the next version of a bundle, with what this machine can build.

The rest is shared. Meant for a machine with the GPU that will serve: it needs neither PyTorch nor
the training run.
"""

import datetime
import tempfile
from pathlib import Path

import msgspec

from exporters.calibration import read_calibration
from exporters.command_line import AddOptions
from exporters.gates import HeldOut
from exporters.making import Maker, make_all
from exporters.proof import Work
from exporters.version import complete
from packshot.bundle import CALIBRATION, LABELS, REPORT, Bundle, open_bundle
from packshot.errors import AnswersDiffer
from packshot.store import current_version, new_version, share

WRITTEN_ANEW = (LABELS, REPORT)


def add_engine(options: AddOptions) -> Path:
    """Writes the next version and returns its folder.

    Raises NotFound or DamagedFile for the version to start from, AnswersDiffer if no engine that
    was asked for passes. Nothing is left behind then.
    """
    model = options.models / options.model
    base = open_bundle(model / str(options.version or current_version(model)))
    with (
        new_version(model) as (version, folder),
        tempfile.TemporaryDirectory(prefix="packshot-export-") as workshop,
    ):
        unchanged = [name for name in base.manifest.files if name not in WRITTEN_ANEW]
        share(unchanged, base.folder, folder)
        golden = base.golden()
        work = Work(
            folder=folder,
            golden=golden,
            held_out=_held_out(options, base),
            temperature=base.manifest.temperature,
            gates=options.gates,
        )
        calibration = folder / CALIBRATION
        maker = Maker(
            work,
            Path(workshop),
            plan=options.plan,
            logs=options.build_logs,
            calibration=read_calibration(calibration) if calibration.exists() else None,
        )
        made, left_out = make_all(maker, options.engines, options.require)
        if not made:
            told = "; ".join(f"{name}: {why}" for name, why in left_out.items())
            raise AnswersDiffer(f"no engine was added: {told}")
        manifest = msgspec.structs.replace(
            base.manifest,
            version=version,
            engines={**base.manifest.engines, **made},
            left_out={
                name: why
                for name, why in {**base.manifest.left_out, **left_out}.items()
                if name in left_out or name not in options.engines
            },
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        report = (base.folder / REPORT).read_text(encoding="utf-8")
        complete(work, manifest, report, timed=made)
    return model / str(version)


def _held_out(options: AddOptions, base: Bundle) -> HeldOut:
    """Of the training run, if it is at hand, else the golden samples: few, and without truth."""
    if options.run is None:
        golden = base.golden()
        count = len(golden.pixels)
        print(f"no --run: the {count} golden samples stand for held-out images", flush=True)
        return HeldOut(images=golden.pixels, logits=golden.logits)
    from exporters.source import load_source  # PyTorch, which this program does without

    source = load_source(options.run, options.data)
    return source.held_out
