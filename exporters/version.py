"""What every version gets at its end: timings, the model card, labels and manifest."""

import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from exporters.card import with_hops
from exporters.proof import Work
from exporters.speed import SPEED_UP, speed_up, timed_engines
from packshot.bundle import REPORT, EngineFile, Manifest, open_bundle, write_bundle
from packshot.errors import DamagedFile, NotFound
from packshot.machine import has_vnni


def read_report(folder: Path) -> str:
    """The model card of a run or a version. Raises NotFound or DamagedFile."""
    path = folder / REPORT
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(
            f"{path} is missing, which the model card is made from: copy the whole folder again"
        ) from error
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{path} is not UTF-8: copy the whole folder again") from error


def complete(
    work: Work, manifest: Manifest, report: str, timed: Mapping[str, EngineFile]
) -> Manifest:
    """Adds all but the engines to the folder. `report`: the model card of the run or version.

    `timed`: those of the manifest's engines that are to be timed here.
    """
    timings = timed_engines(work, timed)
    manifest = msgspec.structs.replace(manifest, engines={**manifest.engines, **timings})
    _tell_of_speed(timings)
    sizes = {
        name: (work.folder / file.file).stat().st_size for name, file in manifest.engines.items()
    }
    card = with_hops(report, manifest, sizes)
    (work.folder / REPORT).write_text(card, encoding="utf-8")
    written = write_bundle(work.folder, manifest)
    open_bundle(work.folder)  # as a server will: every hash is right
    return written


def _tell_of_speed(timed: Mapping[str, EngineFile]) -> None:
    for name, file in timed.items():
        if file.timings:
            told = ", ".join(
                f"{one.milliseconds:.1f} ms at {one.batch} ({one.images_per_second:.0f} images/s)"
                for one in file.timings
            )
            print(f"{name}: {told}, on {file.timed_on}", flush=True)
    int8, fp32 = timed.get("int8"), timed.get("fp32")
    if int8 and fp32:
        times = speed_up(int8.timings, fp32.timings)
        print(f"int8 is {times:.2f} times as fast as fp32", flush=True)
        if has_vnni() and times < SPEED_UP:
            print(
                f"WARNING: at least {SPEED_UP} times is usual on a CPU with VNNI, as this is: "
                "was it busy with something else?",
                flush=True,
            )


def peak_gigabytes() -> float:
    """The largest resident set of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
