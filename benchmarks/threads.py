"""One image through ONNX Runtime: on one thread, on all, with threads that spin and that do not.

With a pause before each run, as at low load: that is where it matters.

    python -m benchmarks.threads --models models --model products
"""

import statistics
import time
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.serving import parse_options
from packshot.bundle import INPUT, open_bundle
from packshot.cores import available_cores
from packshot.store import current_version

PAUSE_SECONDS = 0.01
RUNS = 40


def session(path: str, threads: int, spinning: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def milliseconds(one: Any, image: np.ndarray) -> tuple[float, float]:
    """Median of a run, and CPU of a run."""
    taken = []
    cpu = time.process_time()
    for _ in range(RUNS):
        time.sleep(PAUSE_SECONDS)
        started = time.perf_counter()
        one.run(None, {INPUT: image})
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1000, (time.process_time() - cpu) / RUNS * 1000


def main() -> None:
    options = parse_options(__doc__ or "")
    folder = options.models / options.model
    bundle = open_bundle(folder / str(current_version(folder)))
    engine = "int8" if "int8" in bundle.manifest.engines else "fp32"
    path = str(bundle.engine_path(engine))
    cores = available_cores()
    image = np.random.default_rng(0).integers(0, 255, (1, *bundle.manifest.image.shape), np.uint8)
    ways = {"1 thread": (1, False), f"{cores} threads": (cores, False)}
    ways[f"{cores} threads that spin"] = (cores, True)
    sessions = {name: session(path, *way) for name, way in ways.items()}
    for number in range(1, options.rounds + 1):  # alternating
        for name, one in sessions.items():
            wall, cpu = milliseconds(one, image)
            print(f"round {number}: {engine}, {name}: {wall:.1f} ms, {cpu:.1f} of CPU", flush=True)


if __name__ == "__main__":
    main()
