"""Goodput under overload: answers within the deadline, at 0.7 to 5 times what the server can do.

A server that takes everything in answers everybody late. What counts is the share of its best rate
that still arrives in time, how soon the others are refused, and that memory stays where it was. The
load generator runs on the same cores and takes its part of them: what it is late itself counts.
Requests are evenly spaced: with Poisson arrivals the queue of even a perfect server is longer.
Each round measures the peak anew, and each figure is held against the peak of its round. At the
end: what is left of the cores while a gRPC server that answers a constant takes in the surplus.

    python -m benchmarks --only overload
"""

from collections.abc import Callable, Sequence

import msgspec

from benchmarks.calm import calm_rounds
from benchmarks.driven import CONCURRENCY, Driven, cores_left, drive, steady, warmup
from benchmarks.figures import Figure, Findings
from benchmarks.options import Options, cpu_engine
from benchmarks.process import Served, server
from packshot.load import LoadPlan
from packshot.load.pictures import photos

DEADLINE_SECONDS = 0.5
BELOW, PEAK, TWICE, FIVE_TIMES = 0.7, 1.0, 2.0, 5.0
OFFERED = (BELOW, PEAK, TWICE, FIVE_TIMES)


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """`peak`: never kept waiting. `alone`: one request at a time. `offered`: by times the peak."""

    peak: Driven
    alone: Driven
    offered: dict[float, Driven]

    def in_time(self, times: float) -> float:
        """Of the peak."""
        return self.offered[times].images_per_second / self.peak.images_per_second

    def tail(self, times: float) -> float:
        """p99 over what a lone request takes; what is not answered takes the whole deadline."""
        offered = self.offered[times]
        unanswered = sum(offered.errors.values())
        whole = offered.answered >= 0.99 * (offered.answered + unanswered)
        p99 = offered.latency_ms["p99"] if whole else DEADLINE_SECONDS * 1000
        return p99 / self.alone.latency_ms["p50"]

    def refusal_ms(self, times: float, percentile: str = "p99") -> float:
        """That of the deadline if nothing was refused: what was too much came late."""
        return self.offered[times].refusal_ms.get(percentile, DEADLINE_SECONDS * 1000)

    def late(self, times: float) -> float:
        """Share of all that were due of those that were let in, and not answered in time."""
        offered = self.offered[times]
        sent = offered.answered + sum(offered.errors.values())
        return offered.errors.get("DEADLINE_EXCEEDED", 0) / sent


def measure(options: Options) -> Findings:
    engine, images = cpu_engine(options.open_bundle()), photos(options.images)
    with server(options.models, options.model, "--engines", engine) as served:
        drive(served, steady(served, options.seconds), images)  # warm
        rounds = calm_rounds(
            options.rounds_or(),
            lambda: _round(served, options.seconds, images),
            lambda found: f"{engine}: {_lines(found)}",
        )
    peak = rounds[-1].peak.images_per_second
    left = {
        times: cores_left((times - 1) * peak, images, options.seconds)
        for times in (TWICE, FIVE_TIMES)
    }
    return Findings(figures=tuple(_figures(rounds, left)), rounds=tuple(rounds))


def _round(served: Served, seconds: float, images: Sequence[bytes]) -> Round:
    peak = drive(served, steady(served, seconds), images)
    alone = drive(served, steady(served, seconds, concurrency=1), images)

    def offered(times: float) -> Driven:
        plan = LoadPlan(
            target=served.target, rate=times * peak.images_per_second, arrivals="constant",
            seconds=seconds, timeout_seconds=DEADLINE_SECONDS, processes=1,
            warmup_seconds=warmup(seconds),
        )  # fmt: skip
        return drive(served, plan, images)

    return Round(peak=peak, alone=alone, offered={times: offered(times) for times in OFFERED})


def _figures(rounds: Sequence[Round], left: dict[float, float]) -> list[Figure]:
    def each(value: Callable[[Round], float]) -> tuple[float, ...]:
        return tuple(map(value, rounds))

    at_first = rounds[0].offered[PEAK].megabytes
    return [
        Figure(
            name="at 0.7 of the peak: p99 / one request alone", better="lower", bar=3.0,
            rounds=each(lambda found: found.tail(BELOW)),
        ),
        Figure(
            name="at twice the peak: in time, of the peak", better="higher", bar=0.9,
            rounds=each(lambda found: found.in_time(TWICE)),
        ),
        Figure(
            name="at five times the peak: in time, of the peak", better="higher",
            rounds=each(lambda found: found.in_time(FIVE_TIMES)),
        ),
        Figure(
            name="at twice the peak: p99 of a refusal", unit="ms", better="lower", bar=20.0,
            rounds=each(lambda found: found.refusal_ms(TWICE)),
        ),
        Figure(
            name="at twice the peak: late, of those sent", better="lower",
            rounds=each(lambda found: found.late(TWICE)),
        ),
        Figure(
            name="at five times the peak: late, of those sent", better="lower",
            rounds=each(lambda found: found.late(FIVE_TIMES)),
        ),
        # One server for all rounds: what it has grown by since the first peak is what counts.
        Figure(
            name="at twice the peak: memory / at the first peak", better="lower", bar=1.05,
            rounds=each(lambda found: found.offered[TWICE].megabytes / at_first),
        ),
        Figure(
            name="at five times the peak: memory / at the first peak", better="lower", bar=1.05,
            rounds=each(lambda found: found.offered[FIVE_TIMES].megabytes / at_first),
        ),
        Figure(
            name="cores left by a bare server, surplus of twice the peak", better="higher",
            rounds=(left[TWICE],),
        ),
        Figure(
            name="cores left by a bare server, surplus of five times", better="higher",
            rounds=(left[FIVE_TIMES],),
        ),
    ]  # fmt: skip


def _lines(found: Round) -> str:
    head = (
        f"{found.peak.images_per_second:.1f} images/s with {CONCURRENCY} requests in flight; one "
        f"alone takes {found.alone.latency_ms['p50']:.0f} ms"
    )
    return "\n".join([head, *(_line(found, times) for times in OFFERED)])


def _line(found: Round, times: float) -> str:
    offered = found.offered[times]
    refused = offered.errors.get("RESOURCE_EXHAUSTED", 0)
    late = offered.errors.get("DEADLINE_EXCEEDED", 0)
    half, most = (found.refusal_ms(times, percentile) for percentile in ("p50", "p99"))
    return (
        f"{times:3.1f} x: {found.in_time(times):.2f} of the peak in time; {offered.answered} "
        f"answered (p99 {found.tail(times):.1f} times one alone), {refused} refused (p50 "
        f"{half:.0f} and p99 {most:.0f} ms), {late} late; {offered.megabytes:.0f} MB"
    )
