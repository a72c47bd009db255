"""Goodput under overload: answers within the deadline, at one to four times what the server can do.

A server that takes everything in answers everybody late. What counts is the share of its best rate
that still arrives in time. The load generator runs on the same cores and takes its part of them.

    python -m benchmarks.overload --models models --model products
"""

from benchmarks.photos import photos
from benchmarks.process import server
from benchmarks.serving import CONCURRENCY, parse_options
from packshot.load import LoadPlan, run_load

DEADLINE_SECONDS = 0.5
TIMES_SATURATION = (0.7, 1.0, 2.0, 4.0)


def main() -> None:
    options = parse_options(__doc__ or "")
    images = photos()
    with server(options.models, options.model) as served:
        closed = LoadPlan(target=served.target, concurrency=CONCURRENCY, seconds=options.seconds)
        run_load(closed, images)  # warm
        peak = run_load(closed, images).images_per_second
        print(f"{served.engine}: {peak:.1f} images/s with {CONCURRENCY} requests in flight")
        for times in TIMES_SATURATION:
            plan = LoadPlan(
                target=served.target,
                rate=times * peak,
                seconds=options.seconds,
                timeout_seconds=DEADLINE_SECONDS,
            )
            report = run_load(plan, images)
            refused = report.errors.get("RESOURCE_EXHAUSTED", 0)
            late = report.errors.get("DEADLINE_EXCEEDED", 0)
            print(
                f"{times:3.1f} x: {report.images_per_second:6.1f} images/s in time, "
                f"{report.images_per_second / peak:.2f} of the peak; {report.answered} answered, "
                f"{refused} refused, {late} late",
                flush=True,
            )


if __name__ == "__main__":
    main()
