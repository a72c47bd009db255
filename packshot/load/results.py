"""A load test on disk: load.json for programs, load.html for people."""

import tempfile
from pathlib import Path

import msgspec

from packshot.atomic import UNFINISHED, write_whole
from packshot.errors import DamagedFile, InvalidInput, NotFound
from packshot.load.report import LoadReport
from packshot.load.served import Served
from packshot.load.sweep import Found, Sweep
from packshot.machine import Machine
from packshot.record import decode_record

FORMAT = 1
JSON_NAME, PAGE_NAME = "load.json", "load.html"


class SentImages(msgspec.Struct, frozen=True, kw_only=True):
    """What was sent in turn. `source`: for a reader."""

    source: str
    count: int
    mean_bytes: float


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """Of one command: a run or a sweep, and what that found. `created`: ISO 8601, UTC. `machine`:
    the client's.
    """

    format: int = FORMAT
    created: str
    packshot: str
    machine: Machine
    served: Served
    images: SentImages
    run: LoadReport | None = None
    sweep: Sweep | None = None
    found: Found | None = None

    @property
    def runs(self) -> tuple[LoadReport, ...]:
        if self.sweep is None:
            return () if self.run is None else (self.run,)
        return self.sweep.runs

    @property
    def client_processes(self) -> int:
        """The most of any run: of a sweep's loops with few in flight, fewer send."""
        return max((len(run.client_cores) for run in self.runs), default=0)


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


def try_folder(folder: Path) -> None:
    """Makes it, if need be. Raises InvalidInput where no file can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=UNFINISHED, dir=folder):
            pass
    except OSError as error:
        raise InvalidInput(f"{folder}: results cannot be written: {error.strerror}") from error


def write_results(folder: Path, results: Results, page: str) -> None:
    """Whole files, or none."""
    folder.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(results))
    write_whole(folder / JSON_NAME, text)
    write_whole(folder / PAGE_NAME, page.encode())
