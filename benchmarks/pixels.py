"""Pixels served, against the engine's own loop: one thread a core on one shared session.

Nothing is decoded on either side, so that what the server adds shows the most: 150 kB a request
through sockets and protobuf, the queue, the batches, the answers. And eight images a request, as
those who decode for themselves may well send them: the cost of a request is then shared. At the
end: what is left of the cores while a gRPC server that answers a constant takes in as many.

    python -m benchmarks --only pixels
"""

from functools import partial

import msgspec

from benchmarks.calm import calm_rounds
from benchmarks.driven import Driven, cores_left, drive, steady
from benchmarks.figures import Figure, Findings
from benchmarks.loops import batches, in_lanes
from benchmarks.measured import Measured, cpu, throughput
from benchmarks.options import Options, cpu_engine
from benchmarks.process import server
from exporters.proof import open_onnx
from packshot.cores import available_cores
from packshot.image import load_pixels, read_pixels
from packshot.load.pictures import photos

LANE_BATCH = 4
PICTURES = 16
EIGHT = 8


class Round(msgspec.Struct, frozen=True, kw_only=True):
    served: Driven
    in_eights: Driven
    lanes: Measured


def measure(options: Options) -> Findings:
    bundle, cores = options.open_bundle(), available_cores()
    engine_name, spec = cpu_engine(bundle), bundle.manifest.image
    images = [load_pixels(photo, spec).tobytes() for photo in photos(PICTURES)]
    engine = open_onnx(bundle.engine_path(engine_name), engine_name)
    of_lanes = [batches(images, LANE_BATCH, partial(read_pixels, spec=spec)) for _ in range(cores)]
    with server(options.models, options.model, "--engines", engine_name) as served:
        plan = steady(served, options.seconds, pixels=True)
        eights = msgspec.structs.replace(plan, images_per_request=EIGHT, concurrency=4)
        drive(served, plan, images)  # warm

        def take() -> Round:
            return Round(
                served=drive(served, plan, images),
                in_eights=drive(served, eights, images),
                lanes=in_lanes(engine.run, of_lanes, options.seconds),
            )

        rounds = calm_rounds(options.rounds_or(), take, partial(_line, engine_name))
    left = cores_left(rounds[-1].lanes.images_per_second, images, options.seconds, pixels=True)
    pairs = [(one.served, one.lanes) for one in rounds]
    of_eights = [(one.in_eights, one.lanes) for one in rounds]
    return Findings(
        figures=(
            throughput("pixels served / lanes without a server", pairs, bar=0.95),
            cpu("pixels served / lanes without a server", pairs),
            throughput("pixels served, eight a request / lanes without a server", of_eights),
            cpu("pixels served, eight a request / lanes without a server", of_eights),
            Figure(
                name="cores left by a bare server, pixels at the rate of the lanes",
                better="higher",
                rounds=(left,),
            ),
        ),
        rounds=tuple(rounds),
    )


def _line(engine: str, found: Round) -> str:
    return (
        f"{engine}, pixels served {found.served.images_per_second:.1f} images/s at "
        f"{found.served.cpu_ms:.1f} CPU ms an image; eight a request "
        f"{found.in_eights.images_per_second:.1f} at {found.in_eights.cpu_ms:.1f}; lanes "
        f"{found.lanes.images_per_second:.1f} at {found.lanes.cpu_ms:.1f}"
    )
