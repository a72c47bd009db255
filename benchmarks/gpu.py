"""A GPU's engine served, against the same engine's own loop, and what holds the server back.

The loop has a thread for each of the engine's workers and pixels that are ready: nothing is
decoded, nothing is sent. Served are pixels, which leave out the decoders, and JPEGs; the server has
the engine for itself, the loop runs when nobody asks.

    python -m benchmarks.gpu --models models --model products [--engine cuda]
"""

import argparse
from collections.abc import Sequence
from functools import partial

import msgspec

from benchmarks.calm import calm_rounds
from benchmarks.figures import Findings, figures_table
from benchmarks.loops import batches, in_lanes
from benchmarks.measured import Measured, throughput
from benchmarks.options import Options, add_options, chosen
from benchmarks.process import Served, server
from packshot.bundle import Bundle
from packshot.cores import available_cores
from packshot.errors import EngineRefused
from packshot.image import load_pixels, read_pixels
from packshot.load import LoadPlan, LoadReport, Source, run_load
from packshot.load.pictures import photos
from serving.engines import Engine
from serving.engines.open import ENGINES, EngineChoice, open_engine

ON_GPU = ("tensorrt", "cuda")
MAX_BATCH = 32
BATCHES_IN_FLIGHT = 4  # what is run, what waits, and what is on its way
BUSY = 0.9


class Round(msgspec.Struct, frozen=True, kw_only=True):
    loop: Measured
    pixels: Measured
    jpegs: Measured
    pixels_limit: str
    jpegs_limit: str


def measure(options: Options, names: Sequence[str]) -> Findings:
    """Ends the program where none of the engines runs."""
    bundle = options.open_bundle()
    engine = _opened(bundle, names)
    spec, files = bundle.manifest.image, photos(options.images)
    pixels = [load_pixels(file, spec).tobytes() for file in files]
    lanes = [
        batches(pixels, MAX_BATCH, partial(read_pixels, spec=spec)) for _ in range(engine.lanes)
    ]
    alone = ("--engines", engine.name, "--require", engine.name, "--max-batch", str(MAX_BATCH))
    room = ("--max-queued-images", str(2 * BATCHES_IN_FLIGHT * MAX_BATCH))
    with server(options.models, options.model, *alone, *room) as served:

        def take() -> Round:
            of_pixels = _driven(served, options, pixels, pixels=True)
            of_jpegs = _driven(served, options, files, pixels=False)
            return Round(
                loop=in_lanes(engine.run, lanes, options.seconds),
                pixels=_measured(of_pixels),
                jpegs=_measured(of_jpegs),
                pixels_limit=limit(of_pixels),
                jpegs_limit=limit(of_jpegs),
            )

        _driven(served, options, pixels, pixels=True)  # warm
        rounds = calm_rounds(options.rounds_or(), take, partial(_line, engine.name))
    engine.close()
    return Findings(
        figures=(
            throughput("pixels served / the engine's loop", [(r.pixels, r.loop) for r in rounds]),
            throughput("JPEGs served / the engine's loop", [(r.jpegs, r.loop) for r in rounds]),
        ),
        rounds=tuple(rounds),
    )


def limit(report: LoadReport) -> str:
    """What the server could not get more of, by what client and server say of themselves."""
    window, cores = report.server, available_cores()
    assert window is not None
    told = (
        f"{window.cpu_cores:.1f} of {cores} cores, batches of {window.batch_images_mean or 0:.1f}"
    )
    if late := [doubt.text for doubt in report.doubts if doubt.of_client]:
        return f"the load generator ({late[0]})"
    if sum((window.cpu_cores, *report.client_cores)) >= BUSY * cores:
        return f"the cores ({told})"
    if window.saturation >= BUSY:
        return f"engine or decoders ({told})"
    return f"one thread, most likely the event loop ({told}, saturation {window.saturation:.0%})"


def _opened(bundle: Bundle, names: Sequence[str]) -> Engine:
    choice = EngineChoice(order=tuple(names), lanes=available_cores(), max_batch=MAX_BATCH)
    try:
        return open_engine(bundle, choice).engine
    except EngineRefused as refused:
        raise SystemExit(f"nothing to measure: {refused}") from None


def _driven(
    served: Served, options: Options, images: Sequence[bytes], *, pixels: bool
) -> LoadReport:
    plan = LoadPlan(
        target=served.target,
        concurrency=BATCHES_IN_FLIGHT * MAX_BATCH,
        seconds=options.seconds,
        pixels=pixels,
    )
    assert served.metrics_url is not None
    report = run_load(plan, images, source=Source(served.metrics_url, options.model))
    if report.server is None:
        raise SystemExit("; ".join(doubt.text for doubt in report.doubts))
    return report


def _measured(report: LoadReport) -> Measured:
    window = report.server
    assert window is not None
    return Measured(
        images_per_second=report.images_per_second, cpu_ms=window.cpu_ms_an_image or 0.0
    )


def _line(engine: str, found: Round) -> str:
    return (
        f"{engine}: its loop {found.loop.images_per_second:.0f} images/s; served as pixels "
        f"{found.pixels.images_per_second:.0f}, limited by {found.pixels_limit}; as JPEGs "
        f"{found.jpegs.images_per_second:.0f}, limited by {found.jpegs_limit}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add_options(parser)
    parser.add_argument(
        "--engine", choices=sorted(ENGINES), help=f"default: the first of {', '.join(ON_GPU)}"
    )
    given = parser.parse_args()
    names = [given.engine] if given.engine else ON_GPU
    print(figures_table(measure(chosen(given), names).figures))


if __name__ == "__main__":
    main()
