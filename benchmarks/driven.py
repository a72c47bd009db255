"""A server under load: what it answered, and the CPU that this took.

The load generator runs on the same cores and takes its part of them, which is told too. So the
server's throughput is a little less than it could be, and its CPU seconds an image are the figure
that depends least on who else is there.
"""

from collections.abc import Sequence

from benchmarks.measured import Measured
from benchmarks.process import Served, started
from packshot.cores import available_cores
from packshot.load import LoadPlan, run_load

CONCURRENCY = 16


class Driven(Measured, frozen=True, kw_only=True):
    """Of a round of load. `errors`: requests without an answer, by status; `image_errors`: images
    without one in answered requests. `doubts`: the client's.

    `generator_cpu_ms`: an image. `megabytes`: resident in the server, right after the load.
    """

    generator_cpu_ms: float
    answered: int
    errors: dict[str, int]
    image_errors: dict[str, int]
    doubts: tuple[str, ...]
    latency_ms: dict[str, float]
    refusal_ms: dict[str, float]
    megabytes: float


def steady(
    served: Served, seconds: float, *, concurrency: int = CONCURRENCY, pixels: bool = False
) -> LoadPlan:
    """One image a request, always as many in flight."""
    return LoadPlan(
        target=served.target, concurrency=concurrency, seconds=seconds, pixels=pixels, processes=1,
        warmup_seconds=warmup(seconds),
    )  # fmt: skip


def warmup(seconds: float) -> float:
    """Before a measurement of so many seconds."""
    return min(1.0, seconds)


def cores_left(
    rate: float, images: Sequence[bytes], seconds: float, *, pixels: bool = False
) -> float:
    """Share of the cores that a bare gRPC server and its load generator leave at this rate."""
    with started("benchmarks.bare_server") as bare:
        plan = LoadPlan(
            target=bare.target, rate=rate, arrivals="constant", seconds=seconds, pixels=pixels,
            processes=1, warmup_seconds=warmup(seconds),
        )  # fmt: skip
        drive(bare, plan, images)  # warm
        found = drive(bare, plan, images)
    taken = (found.cpu_ms + found.generator_cpu_ms) / 1000 * found.images_per_second
    return 1 - taken / available_cores()


def drive(served: Served, plan: LoadPlan, images: Sequence[bytes]) -> Driven:
    """Runs the plan, of one image a request. Ends the program if the server answers nothing at all.

    At a rate that may be the finding: with none answered in time, CPU is told for one image.
    """
    before = served.cpu_seconds()
    report = run_load(plan, images)
    server_cpu = served.cpu_seconds() - before
    if not report.answered and plan.rate is None:
        raise SystemExit(f"no request to {plan.target} was answered: {report.errors}")
    for doubt in report.doubts:
        print(f"at {plan.mode}: {doubt.text}", flush=True)
    rate = max(report.images_per_second, 1 / plan.seconds)
    return Driven(
        images_per_second=report.images_per_second,
        cpu_ms=server_cpu / max(1, report.images_in_all) * 1000,  # warm-up in both
        generator_cpu_ms=sum(report.client_cores) / rate * 1000,
        answered=report.answered,
        errors=report.errors,
        image_errors=report.image_errors,
        doubts=tuple(doubt.text for doubt in report.doubts),
        latency_ms=report.latency_ms,
        refusal_ms=report.refusal_ms,
        megabytes=served.resident_megabytes(),
    )
