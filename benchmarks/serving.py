"""Served against the floor: the same engine and decoder in a bare loop, in alternating rounds.

The floor is one thread a core, each decoding its own images and running them through one shared
session: no queue, no sockets, no protobuf. Two ratios: throughput, for which the load generator
takes its part of the cores, and CPU seconds an image of the server process alone.

    python -m benchmarks.serving --models models --model products
"""

import argparse
import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.photos import photos
from benchmarks.process import Served, server
from packshot.bundle import Bundle, open_bundle
from packshot.cores import available_cores
from packshot.image import load_pixels, stack
from packshot.load import LoadPlan, run_load
from packshot.store import current_version
from serving.engines.onnxruntime import OnnxRuntimeEngine

FLOOR_BATCH = 4
CONCURRENCY = 16


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Of one round."""

    images_per_second: float
    cpu_ms: float  # an image
    p99_ms: float = 0.0


def bare(bundle: Bundle, engine_name: str, images: Sequence[bytes], seconds: float) -> Measured:
    """One decode-and-run loop a core."""
    cores = available_cores()
    engine = OnnxRuntimeEngine(bundle.engine_path(engine_name), name=engine_name, lanes=cores)
    spec = bundle.manifest.image
    engine.run(stack([load_pixels(images[0], spec)] * FLOOR_BATCH))
    counts = [0] * cores
    started, cpu = time.perf_counter(), time.process_time()

    def lane(number: int) -> None:
        endless = itertools.cycle(images[number:] + images[:number])
        while time.perf_counter() < started + seconds:
            engine.run(stack([load_pixels(next(endless), spec) for _ in range(FLOOR_BATCH)]))
            counts[number] += FLOOR_BATCH

    lanes = [threading.Thread(target=lane, args=(number,)) for number in range(cores)]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    total = sum(counts)
    return Measured(
        images_per_second=total / (time.perf_counter() - started),
        cpu_ms=(time.process_time() - cpu) / total * 1000,
    )


def through(served: Served, images: Sequence[bytes], seconds: float) -> Measured:
    """One image a request, 16 in flight."""
    plan = LoadPlan(target=served.target, concurrency=CONCURRENCY, seconds=seconds)
    cpu = served.cpu_seconds()
    report = run_load(plan, images)
    return Measured(
        images_per_second=report.images_per_second,
        cpu_ms=(served.cpu_seconds() - cpu) / report.answered * 1000,
        p99_ms=report.latency_ms["p99"],
    )


def parse_options(description: str, *, rounds: int = 3) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", default="products")
    parser.add_argument("--seconds", type=float, default=8.0, help="per round")
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser.parse_args()


def main() -> None:
    options = parse_options(__doc__ or "")
    folder = options.models / options.model
    bundle = open_bundle(folder / str(current_version(folder)))
    images = photos()
    throughput, cpu = [], []
    with server(options.models, options.model) as served:
        through(served, images, options.seconds / 2)  # warm
        for number in range(1, options.rounds + 1):
            ours = through(served, images, options.seconds)
            floor = bare(bundle, served.engine, images, options.seconds)
            throughput.append(ours.images_per_second / floor.images_per_second)
            cpu.append(ours.cpu_ms / floor.cpu_ms)
            print(
                f"round {number}: {served.engine} served {ours.images_per_second:.1f} images/s "
                f"(p99 {ours.p99_ms:.0f} ms) at {ours.cpu_ms:.1f} CPU ms an image; floor "
                f"{floor.images_per_second:.1f} at {floor.cpu_ms:.1f}",
                flush=True,
            )
    print(
        f"median on {available_cores()} cores: {statistics.median(throughput):.2f} of the floor's "
        f"throughput, {statistics.median(cpu):.2f} of its CPU an image"
    )


if __name__ == "__main__":
    main()
