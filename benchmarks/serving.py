"""JPEGs served, against the same cores without a server, in alternating rounds.

Held against the ceiling: one thread a core, each decoding its own images and running them through
one shared session, with the server's own engine and decoder. And against the loop that one writes
first: decode eight, run eight, on a session of ONNX Runtime over all cores, whose threads spin or
not, whichever is faster in that round. It decodes as most do, with Pillow alone; the same loop with
packshot's decoder and engine tells how much of the lead is theirs, and the ceiling over that loop
how much of a lead this machine has room for.

    python -m benchmarks --only serving
"""

from functools import partial
from typing import Any

import msgspec
import numpy as np

from benchmarks.calm import calm_rounds
from benchmarks.driven import Driven, drive, steady
from benchmarks.figures import Findings
from benchmarks.loops import batches, in_lanes
from benchmarks.measured import Measured, cpu, throughput
from benchmarks.options import Options, cpu_engine
from benchmarks.plain_server import plain_pixels
from benchmarks.process import server
from benchmarks.threads import session
from exporters.proof import open_onnx
from packshot.bundle import INPUT, Bundle
from packshot.cores import available_cores
from packshot.image import load_pixels
from packshot.load.pictures import photos

LANE_BATCH = 4
SERIAL_BATCH = 8


class Round(msgspec.Struct, frozen=True, kw_only=True):
    served: Driven
    lanes: Measured
    serial: Measured
    serial_by_packshot: Measured


class Loops:
    """What the server is held against, on one bundle and the same images."""

    def __init__(self, bundle: Bundle, engine: str, images: list[bytes], seconds: float) -> None:
        path, cores = bundle.engine_path(engine), available_cores()
        self._packshot_decoder = partial(load_pixels, spec=bundle.manifest.image)
        self._plain_decoder = partial(plain_pixels, spec=bundle.manifest.image)
        self._images = images
        self._seconds = seconds
        self._engine = open_onnx(path, engine)
        self._sessions = [
            session(str(path), cores, spinning=spinning) for spinning in (True, False)
        ]
        self._lanes = [
            batches(images, LANE_BATCH, self._packshot_decoder, first=number)
            for number in range(cores)
        ]

    def ceiling(self) -> Measured:
        return in_lanes(self._engine.run, self._lanes, self._seconds)

    def serial(self) -> Measured:
        """The better of the two sessions, each for half of the time."""
        of_loop = batches(self._images, SERIAL_BATCH, self._plain_decoder)

        def run(one: Any, batch: np.ndarray) -> None:
            one.run(None, {INPUT: batch})

        found = [
            in_lanes(partial(run, one), [of_loop], self._seconds / 2) for one in self._sessions
        ]
        return max(found, key=lambda measured: measured.images_per_second)

    def serial_by_packshot(self) -> Measured:
        of_loop = batches(self._images, SERIAL_BATCH, self._packshot_decoder)
        return in_lanes(partial(self._engine.run, alone=True), [of_loop], self._seconds)


def measure(options: Options) -> Findings:
    bundle, images = options.open_bundle(), photos(options.images)
    engine = cpu_engine(bundle)
    loops = Loops(bundle, engine, images, options.seconds)
    with server(options.models, options.model, "--engines", engine) as served:
        plan = steady(served, options.seconds)
        drive(served, plan, images)  # warm

        def take() -> Round:
            return Round(
                served=drive(served, plan, images),
                lanes=loops.ceiling(),
                serial=loops.serial(),
                serial_by_packshot=loops.serial_by_packshot(),
            )

        rounds = calm_rounds(options.rounds_or(), take, partial(_line, engine))
    to_lanes = [(one.served, one.lanes) for one in rounds]
    to_serial = [(one.served, one.serial) for one in rounds]
    to_ours = [(one.served, one.serial_by_packshot) for one in rounds]
    ceiling = [(one.lanes, one.serial) for one in rounds]
    return Findings(
        figures=(
            throughput("served / lanes without a server", to_lanes, bar=0.90),
            cpu("served / lanes without a server", to_lanes, bar=1.10),
            throughput("served / serial loop", to_serial, bar=1.9),
            cpu("served / serial loop", to_serial),
            throughput("served / serial loop, packshot's decoder and engine", to_ours),
            throughput("lanes without a server / serial loop", ceiling),
        ),
        rounds=tuple(rounds),
    )


def _line(engine: str, found: Round) -> str:
    served = found.served
    others = ", ".join(
        f"{name} {one.images_per_second:.1f} at {one.cpu_ms:.1f}"
        for name, one in (
            ("lanes", found.lanes), ("serial", found.serial),
            ("serial with packshot's decoder and engine", found.serial_by_packshot),
        )
    )  # fmt: skip
    return (
        f"{engine} served {served.images_per_second:.1f} images/s (p99 "
        f"{served.latency_ms['p99']:.0f} ms) at {served.cpu_ms:.1f} CPU ms an image (the load "
        f"generator {served.generator_cpu_ms:.1f}); {others}"
    )
