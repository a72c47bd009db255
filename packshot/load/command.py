"""What `packshot load` does, once its libraries are there."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from tqdm import tqdm

from packshot import __version__
from packshot.channel import Connection
from packshot.cli_load import default_options
from packshot.cli_options import tls_of, token_of
from packshot.errors import ImageError, InvalidInput, PackshotError
from packshot.image import ImageSpec, load_pixels
from packshot.image_names import image_names, printable
from packshot.load import LoadReport, Source, Sweep, run_load, run_sweep
from packshot.load.compare import comparison_text
from packshot.load.interrupt import interrupt_on_termination
from packshot.load.observed import read_metrics
from packshot.load.page import page
from packshot.load.pictures import photos
from packshot.load.results import (
    Results,
    SentImages,
    read_results,
    try_folder,
    write_results,
)
from packshot.load.senders import State
from packshot.load.served import served_by
from packshot.load.sweep import sweep_of
from packshot.load.text import results_text
from packshot.load_plan import LoadPlan
from packshot.machine import this_machine

MOST_IMAGES, MOST_BYTES = 256, 64_000_000  # in the memory of each client process
GENERATED = 24  # of which each takes a while to draw
FEWEST_OF_A_SWEEP = 3  # runs: both closed loops, which all else goes by, and a rate


class Found(NamedTuple):
    """A run or a sweep. `ended`: what ended it, if it did not come to its end."""

    run: LoadReport | None = None
    sweep: Sweep | None = None
    ended: BaseException | None = None


def load(options: argparse.Namespace) -> int:
    """Exit status: 0 all well, 1 some request or image failed; a sweep has some refused on purpose.

    What ends the load early is raised once all that was counted is reported.
    """
    if options.compare:
        return _compare(options)
    if options.out is not None:
        try_folder(options.out)  # what cannot be written there is told before the load
    interrupt_on_termination()
    results, ended = measured(options)
    try:
        if options.out is not None:  # before anything is printed, which nobody may read any more
            write_results(options.out, results, page(results))
            _say(f"results in {options.out}")
    except OSError as error:
        told = f"{options.out}: results cannot be written: {error.strerror}"
        raise InvalidInput(told) from error
    finally:
        text = msgspec.json.encode(results).decode() if options.json else results_text(results)
        print(text, flush=True)
    if ended is not None:
        raise ended
    return 0 if _all_well(results) else 1


def _all_well(results: Results) -> bool:
    first, sweep = results.runs[0], results.sweep
    if sweep is not None and (sweep.cut_short or any(run.faults for run in sweep.runs)):
        return False
    return not first.failed and not first.image_errors


def _compare(options: argparse.Namespace) -> int:
    of_a_load = {**vars(default_options()), "compare": options.compare}
    if ignored := [name for name in of_a_load if getattr(options, name) != of_a_load[name]]:
        names = ", ".join(
            name if name == "images" else f"--{name.replace('_', '-')}" for name in ignored
        )
        raise InvalidInput(f"--compare sends nothing and prints a table: leave {names} out")
    before, after = map(read_results, options.compare)
    print(comparison_text(before, after))
    return 0


def measured(options: argparse.Namespace) -> tuple[Results, BaseException | None]:
    """With results that did not come to their end, what ended them."""
    plan = _plan(options)
    connection = Connection(target=plan.target, tls=tls_of(options), token=token_of(options))
    served = served_by(plan, connection)
    if options.metrics_url:
        read_metrics(options.metrics_url)  # a wrong one is told before the load, not after
    named = _images(options.images)
    images = [image for _, image in named]
    sent = _sent(images, options.images)
    if options.pixels:
        images = [_pixels(name, image, served.crop) for name, image in named]
    source = Source(options.metrics_url, served.model) if options.metrics_url else None
    with Live() as live:
        if options.sweep:
            found = _sweep(plan, images, connection, source, live)
        else:
            found = _run(plan, images, connection, source, live)
    results = Results(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        packshot=__version__,
        machine=this_machine(),
        served=served,
        images=sent,
        run=found.run,
        sweep=found.sweep,
        found=None if found.sweep is None else found.sweep.found(),
    )
    return results, found.ended


def _run(
    plan: LoadPlan,
    images: Sequence[bytes],
    connection: Connection,
    source: Source | None,
    live: "Live",
) -> Found:
    report = run_load(
        plan, images, tls=connection.tls, token=connection.token, source=source, watch=live.watch
    )
    return Found(run=report, ended=KeyboardInterrupt() if report.was_stopped else None)


def _sweep(
    plan: LoadPlan,
    images: Sequence[bytes],
    connection: Connection,
    source: Source | None,
    live: "Live",
) -> Found:
    """One that an error ends is a sweep of the runs until then, if they are enough for one."""
    try:
        sweep = run_sweep(
            plan,
            images,
            tls=connection.tls,
            token=connection.token,
            source=source,
            watch=live.watch,
            tell=live.tell,
        )
    except (KeyboardInterrupt, PackshotError) as error:
        if len(live.told) < FEWEST_OF_A_SWEEP:
            raise
        cut_short = sweep_of(live.told, str(error) or "it was interrupted")
        return Found(sweep=cut_short, ended=error)
    return Found(sweep=sweep)


def _plan(options: argparse.Namespace) -> LoadPlan:
    if options.sweep and options.rate is not None:
        raise InvalidInput("--sweep chooses the rates itself: leave --rate out")
    if options.rate is not None and options.concurrency is not None:
        raise InvalidInput(
            "--rate sends on time, however many are in flight: leave --concurrency out, or --rate"
        )
    if (
        options.rate is None
        and not options.sweep
        and (options.arrivals or options.seed is not None)
    ):
        raise InvalidInput("--arrivals and --seed are of rates: give --rate or --sweep too")
    given = {name: getattr(options, name) for name in ("arrivals", "concurrency", "seed")}
    return LoadPlan(
        target=options.target,
        model=options.model,
        api=options.api,
        rate=options.rate,
        warmup_seconds=options.warmup,
        seconds=options.seconds,
        images_per_request=options.images_per_request,
        timeout_seconds=options.timeout,
        slo_ms=options.slo_ms,
        pixels=options.pixels,
        processes=options.processes,
        **{name: value for name, value in given.items() if value is not None},
    )


def _sent(images: Sequence[bytes], patterns: Sequence[str]) -> SentImages:
    return SentImages(
        source=_named(patterns) or "generated photographs",
        count=len(images),
        mean_bytes=float(np.mean([len(image) for image in images])),
    )


def _images(patterns: Sequence[str]) -> list[tuple[str, bytes]]:
    """With their names, in memory: as many as fit there, evenly chosen.

    Raises InvalidInput for an unreadable one.
    """
    if not patterns:
        return [(f"photograph {number}", image) for number, image in enumerate(photos(GENERATED))]
    names = image_names(patterns)
    try:
        mean_bytes = sum(Path(name).stat().st_size for name in names) / len(names)
        count = max(1, min(len(names), MOST_IMAGES, int(MOST_BYTES / max(1.0, mean_bytes))))
        chosen = [names[i * len(names) // count] for i in range(count)]
        images = [(name, Path(name).read_bytes()) for name in chosen]
    except OSError as error:
        raise InvalidInput(f"{error.filename}: {error.strerror}") from error
    if count < len(names):
        _say(f"{count} of {len(names)} images are sent in turn")
    return images


def _named(patterns: Sequence[str]) -> str:
    """For a reader: a shell makes thousands of names of one pattern; one may be no UTF-8."""
    more = f" and {len(patterns) - 1} more" if len(patterns) > 1 else ""
    return printable("".join([*patterns[:1], more]))


def _pixels(name: str, image: bytes, crop: int) -> bytes:
    spec = ImageSpec(crop=crop, resize_short_side=max(crop, ImageSpec().resize_short_side))
    try:
        return load_pixels(image, spec).tobytes()
    except ImageError as error:
        raise InvalidInput(f"{name}: {error}") from error


class Live:
    """How it goes, on a terminal; elsewhere a line a run of a sweep. `told`: those runs."""

    def __init__(self) -> None:
        self.told: list[LoadReport] = []
        self._bar = tqdm(
            disable=None if sys.stderr else True,  # None: if standard error is no terminal
            leave=False,
            bar_format="{percentage:3.0f}% |{bar:10}| {desc}",
        )

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def watch(self, state: State) -> None:
        plan = state.plan
        total = plan.warmup_seconds + plan.seconds
        self._bar.total, self._bar.n = total, min(state.seconds, total)
        self._bar.set_description_str(  # what matters most first: a narrow terminal cuts its end
            f"{'stopping: ' if state.stopping else ''}"
            f"{f'{state.failed} not answered, ' if state.failed else ''}"
            f"{state.images / max(state.seconds, 0.001):.1f} images/s, "
            f"{state.in_flight} in flight; {plan.mode}"
        )

    def tell(self, report: LoadReport) -> None:
        self.told.append(report)
        with tqdm.external_write_mode(sys.stderr):
            _say(_line(report))


def _say(text: str) -> None:
    """Beside the results. The load goes on if nobody reads it any more."""
    if sys.stderr is not None:  # it was closed: then print would take standard output for it
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def _line(report: LoadReport) -> str:
    return (
        f"{report.offered}: {report.goodput.mean:.1f} images/s in time, p99 {_p99(report)}, "
        f"{report.failed} of {report.sent} not answered"
    )


def _p99(report: LoadReport) -> str:
    ms = report.latency_ms.get("p99")
    return "-" if ms is None else f"{ms:.0f} ms"
