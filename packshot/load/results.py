"""A load test on disk: load.json for programs, load.html for people."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from packshot.atomic import write_whole
from packshot.errors import DamagedFile, NotFound
from packshot.load.caution import cut_short, doubts_told, shortages
from packshot.load.report import LoadReport, report_text
from packshot.load.served import Served
from packshot.load.sweep import Sweep
from packshot.machine import Machine
from packshot.record import decode_record
from packshot.tables import table

FORMAT = 1
JSON_NAME, PAGE_NAME = "load.json", "load.html"


class SentImages(msgspec.Struct, frozen=True, kw_only=True):
    """What was sent in turn. `source`: for a reader."""

    source: str
    count: int
    mean_bytes: float


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """Of one command: a run or a sweep. `created`: ISO 8601, UTC. `machine`: the client's."""

    format: int = FORMAT
    created: str
    packshot: str
    machine: Machine
    served: Served
    images: SentImages
    run: LoadReport | None = None
    sweep: Sweep | None = None

    @property
    def runs(self) -> tuple[LoadReport, ...]:
        if self.sweep is None:
            return () if self.run is None else (self.run,)
        return self.sweep.runs


def read_results(path: Path) -> Results:
    """A load.json, or the folder that holds it. Raises NotFound or DamagedFile."""
    file = path / JSON_NAME if path.is_dir() else path
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"{file}: no such file; `packshot load --out FOLDER` writes one") from None
    except OSError as error:
        raise DamagedFile(f"{file} cannot be read: {error.strerror}") from error
    return decode_record(content, Results, path=file, what="result of a load test", reads=FORMAT)


def write_results(folder: Path, results: Results, page: str) -> None:
    """Whole files, or none."""
    folder.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(results))
    write_whole(folder / JSON_NAME, text)
    write_whole(folder / PAGE_NAME, page.encode())


def results_text(results: Results) -> str:
    """For a terminal."""
    served = results.served
    head = f"{served.model} version {served.version}, engine {served.engine}"
    if results.sweep is None:
        return "\n".join([head, *map(report_text, results.runs), *_notes(results.runs)])
    return "\n".join([head, *_sweep_lines(results.sweep)])


HEAD = ("OFFERED", "IMAGES/S", "IN TIME", "P50 MS", "P99 MS", "P99.9 MS", "NOT ANSWERED", "LAG P99")


def _sweep_lines(sweep: Sweep) -> list[str]:
    rows = [_row(run) for run in sweep.runs]
    lines = [table([HEAD, *rows]), f"saturates at {sweep.saturation:.1f} images/s"]
    if sweep.kept_up_with is not None:
        lines.append(f"keeps up with {sweep.kept_up_with:.1f} images/s (95 % answered)")
    if (slo_ms := sweep.closed.plan.slo_ms) is not None:
        within = sweep.within_slo
        rate = "no rate that was tried" if within is None else f"up to {within:.1f} images/s"
        lines.append(f"within {slo_ms:g} ms for 99 % of the requests: {rate}")
    return [
        *lines,
        *(f"WARNING {text}" for text in (*cut_short(sweep), *doubts_told(sweep.runs))),
        *_notes(sweep.runs),
    ]


def _notes(runs: Sequence[LoadReport]) -> Iterator[str]:
    return (f"note: {text}" for text in shortages(runs))


def _row(report: LoadReport) -> tuple[str, ...]:
    times = (report.latency_ms.get(name) for name in ("p50", "p99", "p99.9"))
    return (
        f"{report.plan.concurrency} in flight"
        if report.plan.rate is None
        else f"{report.offered_images_per_second:.1f}/s",
        f"{report.answers.mean:.1f}",
        f"{report.goodput.mean:.1f}",
        *("-" if time is None else f"{time:.1f}" for time in times),
        f"{report.failed} of {report.sent}",
        f"{report.lag_ms.get('p99', 0):.1f}",
    )
