"""Served against the floor: the same engine and decoder in a bare loop, in alternating rounds.

The floor is one thread a core, each decoding its own images and running them through one shared
session: no queue, no sockets, no protobuf. What the server reaches of that is its efficiency.

    python -m benchmarks.serving --models models --model products --images data/sample
"""

import argparse
import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.process import server
from packshot.bundle import Bundle, open_bundle
from packshot.cores import available_cores
from packshot.image import load_pixels, stack
from packshot.load import LoadPlan, run_load
from packshot.store import current_version
from serving.engines.onnxruntime import OnnxRuntimeEngine

FLOOR_BATCH = 4
CONCURRENCY = 16
IMAGES = 64


def floor(bundle: Bundle, engine_name: str, images: Sequence[bytes], seconds: float) -> float:
    """Images a second of one decode-and-run loop a core."""
    cores = available_cores()
    engine = OnnxRuntimeEngine(bundle.engine_path(engine_name), name=engine_name, lanes=cores)
    spec = bundle.manifest.image
    engine.run(stack([load_pixels(images[0], spec)] * FLOOR_BATCH))
    counts = [0] * cores
    until = time.perf_counter() + seconds

    def lane(number: int) -> None:
        endless = itertools.cycle(images[number:] + images[:number])
        while time.perf_counter() < until:
            engine.run(stack([load_pixels(next(endless), spec) for _ in range(FLOOR_BATCH)]))
            counts[number] += FLOOR_BATCH

    started = time.perf_counter()
    lanes = [threading.Thread(target=lane, args=(number,)) for number in range(cores)]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def parse_options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", default="products")
    parser.add_argument("--images", type=Path, default=Path("data/sample"))
    parser.add_argument("--seconds", type=float, default=8.0, help="per round")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def load_folder(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:IMAGES]]


def main() -> None:
    options = parse_options(__doc__ or "")
    folder = options.models / options.model
    bundle = open_bundle(folder / str(current_version(folder)))
    images = load_folder(options.images)
    with server(options.models, options.model) as served:
        engine = served.engine
        plan = LoadPlan(target=served.target, concurrency=CONCURRENCY, seconds=options.seconds)
        run_load(plan, images)  # warm
        ratios = []
        for number in range(1, options.rounds + 1):
            report = run_load(plan, images)
            bare = floor(bundle, engine, images, options.seconds)
            ratios.append(report.images_per_second / bare)
            print(
                f"round {number}: {engine} served {report.images_per_second:.1f} images/s (p99 "
                f"{report.latency_ms['p99']:.0f} ms, {CONCURRENCY} in flight), floor {bare:.1f}, "
                f"ratio {ratios[-1]:.2f}",
                flush=True,
            )
    print(f"median ratio {statistics.median(ratios):.2f} on {available_cores()} cores")


if __name__ == "__main__":
    main()
