"""Goodput under overload: answers within the deadline, at 0.7 to 5 times what the server can do.

A server that takes everything in answers everybody late. What counts is the share of its best rate
that still arrives in time, how soon the others are refused, and that memory stays where it was. The
load generator runs on the same cores and takes its part of them: what it is late itself counts.

    python -m benchmarks.overload --models models --model products
"""

from benchmarks.photos import photos
from benchmarks.process import Served, server
from benchmarks.serving import CONCURRENCY, parse_options
from packshot.load import LoadPlan, LoadReport, run_load

DEADLINE_SECONDS = 0.5
TIMES_SATURATION = (0.7, 1.0, 2.0, 5.0)


def main() -> None:
    options = parse_options(__doc__ or "")
    images = photos()
    with server(options.models, options.model) as served:
        closed = LoadPlan(target=served.target, concurrency=CONCURRENCY, seconds=options.seconds)
        run_load(closed, images)  # warm
        peak = run_load(closed, images).images_per_second
        lone = LoadPlan(target=served.target, concurrency=1, seconds=options.seconds)
        alone_ms = run_load(lone, images).latency_ms["p50"]
        print(
            f"{served.engine}: {peak:.1f} images/s with {CONCURRENCY} requests in flight; one "
            f"alone takes {alone_ms:.0f} ms"
        )
        for times in TIMES_SATURATION:
            plan = LoadPlan(
                target=served.target,
                rate=times * peak,
                seconds=options.seconds,
                timeout_seconds=DEADLINE_SECONDS,
            )
            print(_line(times, run_load(plan, images), peak, alone_ms, served), flush=True)


def _line(times: float, report: LoadReport, peak: float, alone_ms: float, served: Served) -> str:
    refused = report.errors.get("RESOURCE_EXHAUSTED", 0)
    late = report.errors.get("DEADLINE_EXCEEDED", 0)
    p99 = report.latency_ms.get("p99", 0.0)
    return (
        f"{times:3.1f} x: {report.images_per_second / peak:.2f} of the peak in time; "
        f"{report.answered} answered (p99 {p99:.0f} ms, {p99 / alone_ms:.1f} times one alone), "
        f"{refused} refused (p50 {report.refusal_ms.get('p50', 0):.0f} ms), {late} late; "
        f"{served.resident_megabytes():.0f} MB"
    )


if __name__ == "__main__":
    main()
