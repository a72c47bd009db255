"""Results of load tests, made of the latencies that they shall have met."""

import msgspec

from packshot.load.observed import ServerWindow, StageTimes
from packshot.load.report import LoadReport, report_of
from packshot.load.results import Results, SentImages
from packshot.load.served import Served
from packshot.load.sweep import Sweep
from packshot.load.tally import Recorder, Tally, Window
from packshot.load_plan import LoadPlan
from packshot.machine import this_machine

SECONDS = 10.0
SERVER = ServerWindow(
    seconds=SECONDS, cpu_cores=1.5, cpu_ms_an_image=30.0, resident_mb=400.0, saturation=0.7,
    images=100, batch_images_mean=2.5, batches={"1": 20, "4": 20},
    stages={
        "decode": StageTimes(count=100, mean_ms=8.0, p50_ms=7.0, p99_ms=20.0),
        "infer": StageTimes(count=40, mean_ms=25.0, p50_ms=24.0, p99_ms=60.0),
    },
    refused={"deadline": 3}, dropped={},
)  # fmt: skip


def plan_of(**fields) -> LoadPlan:
    return LoadPlan(**{"target": "127.0.0.1:8001", "seconds": SECONDS, "slo_ms": 200.0, **fields})


def load_report(
    latencies_ms=(), *, refused=0, lag_ms=0.0, server=SERVER, errors=None, **fields
) -> LoadReport:
    """Requests due evenly over the window, one for each latency, and then the refused ones."""
    plan = plan_of(**fields)
    recorder = Recorder(Window(0.0, SECONDS), (plan.slo_ms or float("inf")) / 1000)
    asked = [*latencies_ms, *[None] * refused]
    for i, ms in enumerate(asked):
        due = SECONDS * i / len(asked)
        recorder.sent(due)
        recorder.late(due, lag_ms / 1000)
        if ms is None:
            recorder.not_answered(due, "RESOURCE_EXHAUSTED")
            recorder.refused(due, 0.004)
        else:
            recorder.answered(due, due + ms / 1000, plan.images_per_request, errors or {})
    return report_of(plan, recorder.tally(cpu_seconds=0.5), server)


def sweep_of(*points: LoadReport, **fields) -> Sweep:
    """Rates as they come, after two closed loops of 50 and 100 ms."""
    alone = load_report([50.0] * 200, **{**fields, "concurrency": 1})
    closed = load_report([100.0] * 300, **fields)
    return Sweep(alone=alone, closed=closed, points=points)


def results_of(found: LoadReport | Sweep, **served) -> Results:
    record = Served(model="products", version="2", engine="int8", crop=224)
    return Results(
        created="2026-01-02T03:04:05+00:00",
        packshot="0.1.0",
        machine=this_machine(),
        served=msgspec.structs.replace(record, **served),
        images=SentImages(source="generated photographs", count=24, mean_bytes=196_000.0),
        run=found if isinstance(found, LoadReport) else None,
        sweep=found if isinstance(found, Sweep) else None,
    )


def plan_at(**changes: object) -> LoadPlan:
    """A hundred requests a second."""
    return LoadPlan(**{"target": "127.0.0.1:1", "rate": 100.0, "seconds": 10.0, **changes})


def tally_of(latencies: list[float], *, failed: int = 0, slo_seconds: float = 0.1) -> Tally:
    """Requests evenly due over ten seconds, each answered so many seconds later."""
    recorder = Recorder(Window(0.0, 10.0), in_time_seconds=slo_seconds)
    for number, latency in enumerate(latencies):
        due = number * 10.0 / len(latencies)
        recorder.sent(due)
        recorder.answered(due, due + latency, images=1, image_errors={})
    for _ in range(failed):
        recorder.sent(0.0)
        recorder.not_answered(0.0, "RESOURCE_EXHAUSTED")
    return recorder.tally(cpu_seconds=1.0)
