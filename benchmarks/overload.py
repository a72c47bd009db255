"""Goodput under overload: answers within the deadline, at 0.7 to 5 times what the server can do.

A server that takes everything in answers everybody late. What counts is the share of its best rate
that still arrives in time, how soon the others are refused, and that memory stays where it was. The
load generator runs on the same cores and takes its part of them: what it is late itself counts.
Each round measures the peak anew, and each figure is held against the peak of its round. At the
end: what is left of the cores while a gRPC server that answers a constant takes in the surplus.

    python -m benchmarks.overload --models models --model products
"""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.photos import photos
from benchmarks.process import Served, server, started
from benchmarks.serving import CONCURRENCY, parse_options
from packshot.cores import available_cores
from packshot.load import LoadPlan, LoadReport, run_load

DEADLINE_SECONDS = 0.5
TIMES_SATURATION = (0.7, 1.0, 2.0, 5.0)


class Peak(NamedTuple):
    """What the server does when it is never kept waiting, and how long one image alone takes."""

    images_per_second: float
    alone_ms: float


def main() -> None:
    options = parse_options(__doc__ or "")
    images = photos()
    goodput: dict[float, list[float]] = {times: [] for times in TIMES_SATURATION}
    with server(options.models, options.model) as served:
        closed = LoadPlan(target=served.target, concurrency=CONCURRENCY, seconds=options.seconds)
        lone = LoadPlan(target=served.target, concurrency=1, seconds=options.seconds)
        run_load(closed, images)  # warm
        for number in range(1, options.rounds + 1):
            peak = Peak(
                run_load(closed, images).images_per_second, run_load(lone, images).latency_ms["p50"]
            )
            print(
                f"round {number}, {served.engine}: {peak.images_per_second:.1f} images/s with "
                f"{CONCURRENCY} requests in flight; one alone takes {peak.alone_ms:.0f} ms"
            )
            for times in TIMES_SATURATION:
                plan = LoadPlan(
                    target=served.target,
                    rate=times * peak.images_per_second,
                    seconds=options.seconds,
                    timeout_seconds=DEADLINE_SECONDS,
                )
                report = run_load(plan, images)
                goodput[times].append(report.images_per_second / peak.images_per_second)
                print(_line(times, report, peak, served), flush=True)
    peak_rate = peak.images_per_second
    for times in (times for times in TIMES_SATURATION if times > 1):
        left = cores_left((times - 1) * peak_rate, images, options.seconds)
        print(f"{times:3.1f} x: taking in the surplus leaves {left:.2f} of the cores")
    shares = ", ".join(f"{statistics.median(found):.2f} at {t} x" for t, found in goodput.items())
    print(f"median share of the peak in time: {shares}")


def cores_left(rate: float, images: Sequence[bytes], seconds: float) -> float:
    """Share of the cores that a bare gRPC server and its load generator leave at this rate."""
    with started("benchmarks.bare_server") as bare:
        plan = LoadPlan(target=bare.target, rate=rate, seconds=seconds)
        run_load(plan, images)  # warm
        before, began = bare.cpu_seconds() + time.process_time(), time.perf_counter()
        run_load(plan, images)
        taken = bare.cpu_seconds() + time.process_time() - before
    return 1 - taken / (time.perf_counter() - began) / available_cores()


def _line(times: float, report: LoadReport, peak: Peak, served: Served) -> str:
    refused = report.errors.get("RESOURCE_EXHAUSTED", 0)
    late = report.errors.get("DEADLINE_EXCEEDED", 0)
    p99 = report.latency_ms.get("p99", 0.0)
    refusal = " and ".join(
        f"{name} {report.refusal_ms.get(name, 0):.0f}" for name in ("p50", "p99")
    )
    return (
        f"{times:3.1f} x: {report.images_per_second / peak.images_per_second:.2f} of the peak in "
        f"time; {report.answered} answered (p99 {p99:.0f} ms, {p99 / peak.alone_ms:.1f} times one "
        f"alone), {refused} refused ({refusal} ms), {late} late; "
        f"{served.resident_megabytes():.0f} MB"
    )


if __name__ == "__main__":
    main()
