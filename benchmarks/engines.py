"""Every engine of a bundle that runs here, at batches of 1 to 32, each run over all cores.

Of OpenVINO several images take a core each, and so does a single one where it is not worth
splitting. Held against the machine's peak: what a large matrix product of the same precision
reaches on as many threads, in the same rounds. For a plan there is none: it runs on a GPU. All
take turns, so that a noisy neighbour hits all alike; all rates are work over time, slow runs
included.

    python -m benchmarks --only engines
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain

import msgspec
import numpy as np

from benchmarks.figures import Figure, Findings
from benchmarks.operations import operations_per_image
from benchmarks.options import Options
from benchmarks.products import OPERATIONS, products
from exporters.proof import open_onnx
from packshot.bundle import PLAN, Bundle
from packshot.cores import available_cores
from packshot.errors import EngineRefused
from packshot.plan import read_sidecar, sidecar_path
from packshot.tables import table
from serving.engines import Engine
from serving.engines.openvino import PRECISIONS, check_openvino
from serving.engines.tensorrt import open_plan

BATCHES = (1, 2, 4, 8, 16, 32)
IMAGES_A_TURN = 32
ROUNDS = 10  # of the largest batch as many runs: its p99 is nearly the slowest
HEAD = ("ENGINE", "BATCH", "IMAGES/S", "P50 MS", "P99 MS", "CPU MS AN IMAGE", "OF THE PEAK")


class Course:
    """Something to run in turns, and what the runs took."""

    def __init__(self, run: Callable[[], object], runs_a_turn: int = 1) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds = 0.0
        self._run = run
        self._runs_a_turn = runs_a_turn

    def warm_up(self) -> None:
        self._run()  # the first run allocates memory

    def take_turn(self) -> None:
        cpu = time.process_time()
        for _ in range(self._runs_a_turn):
            started = time.perf_counter()
            self._run()
            self.seconds.append(time.perf_counter() - started)
        self.cpu_seconds += time.process_time() - cpu

    @property
    def runs_per_second(self) -> float:
        return len(self.seconds) / sum(self.seconds)

    @property
    def cpu_seconds_a_run(self) -> float:
        return self.cpu_seconds / len(self.seconds)

    def milliseconds(self, percentile: int) -> float:
        return float(np.percentile(self.seconds, percentile)) * 1000


def open_engines(bundle: Bundle, stack: ExitStack) -> dict[str, Engine]:
    """By their names in the manifest. Those that do not run here are told, with the reason."""
    engines = {}
    for name in bundle.manifest.engines:
        try:
            engines[name] = _open(bundle, name)
        except EngineRefused as refused:
            print(f"{name} does not run here: {refused}")
        else:
            stack.callback(engines[name].close)
    return engines


def _open(bundle: Bundle, name: str) -> Engine:
    path = bundle.engine_path(name)
    if not path.name.endswith(PLAN):
        if name in PRECISIONS:
            check_openvino(name)
        return open_onnx(path, name)
    max_batch = max(profile.max_batch for profile in read_sidecar(sidecar_path(path)).profiles)
    return open_plan(path, max_batch=max_batch, image_shape=bundle.manifest.image.shape)


def courses_of(engine: Engine, images: np.ndarray) -> dict[int, Course]:
    """By batch size. `images`: uint8 [N, crop, crop, 3], at least one."""
    feeds = {batch: np.resize(images, (batch, *images.shape[1:])) for batch in BATCHES}
    return {
        batch: Course(partial(engine.run, feed, alone=True), IMAGES_A_TURN // batch)
        for batch, feed in feeds.items()
    }


def run_in_turns(courses: Sequence[Course], rounds: int) -> None:
    for course in set(courses):  # one may have several turns in a round
        course.warm_up()
    for _ in range(rounds):
        for course in courses:
            course.take_turn()


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """`of_the_peak`: None for a plan."""

    engine: str
    batch: int
    images_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # an image
    of_the_peak: float | None

    def cells(self) -> tuple[str, ...]:
        times = (self.images_per_second, self.p50_ms, self.p99_ms, self.cpu_ms)
        of_the_peak = "?" if self.of_the_peak is None else f"{self.of_the_peak:.0%}"
        return (self.engine, str(self.batch), *(f"{time:.1f}" for time in times), of_the_peak)


def row(engine: str, batch: int, course: Course, peak: float | None) -> Row:
    """`peak`: images a second."""
    rate = course.runs_per_second * batch
    return Row(
        engine=engine,
        batch=batch,
        images_per_second=rate,
        p50_ms=course.milliseconds(50),
        p99_ms=course.milliseconds(99),
        cpu_ms=course.cpu_seconds_a_run / batch * 1000,
        of_the_peak=None if peak is None else rate / peak,
    )


def rows(
    of_engines: Mapping[str, Mapping[int, Course]], peaks: Mapping[str, float]
) -> Iterator[Row]:
    """`peaks`: of each engine that has one, in images a second."""
    for name, courses in of_engines.items():
        for batch, course in courses.items():
            yield row(name, batch, course, peaks.get(name))


def measure(options: Options) -> Findings:
    bundle = options.open_bundle()
    an_image, cores = operations_per_image(bundle.engine_path("fp32")), available_cores()
    of_products = {name: Course(product) for name, product in products(cores).items()}
    with ExitStack() as stack:
        engines = open_engines(bundle, stack)
        images = bundle.golden().pixels
        of_engines = {name: courses_of(engine, images) for name, engine in engines.items()}
        for_batch = (
            [*(of_engines[name][batch] for name in engines), *of_products.values()]
            for batch in BATCHES
        )
        run_in_turns(list(chain.from_iterable(for_batch)), options.rounds_or(ROUNDS))
    peaks = {name: course.runs_per_second * OPERATIONS for name, course in of_products.items()}
    told = ", ".join(f"{peak / 1e9:.0f} in {name}" for name, peak in peaks.items())
    print(f"an image is {an_image / 1e9:.2f} billion operations; {cores} cores do {told} a second")
    on_cpu = {
        name: peaks[file.precision] / an_image
        for name, file in bundle.manifest.engines.items()
        if file.precision in peaks and not file.file.endswith(PLAN)
    }
    found = list(rows(of_engines, on_cpu))
    print(table([HEAD, *(one.cells() for one in found)]), flush=True)
    return Findings(figures=tuple(_figures(found, on_cpu)), rounds=(found,))


def _figures(found: Sequence[Row], on_cpu: Mapping[str, float]) -> Iterator[Figure]:
    """Of each engine at its best batch; all rounds are one here, for the p99 of large batches."""
    best = {
        name: max(
            (one for one in found if one.engine == name), key=lambda one: one.images_per_second
        )
        for name in on_cpu
    }
    for name, one in best.items():
        share = (one.of_the_peak or 0.0,)
        yield Figure(name=f"{name} engine / matrix product", rounds=share, better="higher")
    if {"int8", "fp32"} <= best.keys():
        ratio = best["int8"].images_per_second / best["fp32"].images_per_second
        yield Figure(name="int8 engine / fp32: throughput", rounds=(ratio,), better="higher")
