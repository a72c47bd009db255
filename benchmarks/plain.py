"""JPEGs served, against a plain grpcio server on the same files, in alternating rounds.

The plain one (benchmarks/plain_server.py) runs the fp32 network, as it comes out of an export, and
the same INT8 network as packshot. Both answer the same load generator, which runs on the same
cores and takes its part for each answer, so most from the faster one. The last line is one client
who sends one image, waits for the answer and sends the next.

    python -m benchmarks --only plain
"""

from collections.abc import Mapping
from contextlib import ExitStack

import msgspec

from benchmarks.calm import calm_rounds
from benchmarks.driven import Driven, drive, steady
from benchmarks.figures import Figure, Findings
from benchmarks.measured import cpu, throughput
from benchmarks.options import Options, cpu_engine
from benchmarks.process import Served, server, started
from packshot.bundle import Bundle
from packshot.load.pictures import photos
from serving.engines.openvino import BF16, INT8

BARS = {"fp32": 3.0, "int8": 1.6}
LONE_BAR = 0.85


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """`plain`: by engine. The lone client's runs the same file as the server."""

    served: Driven
    plain: dict[str, Driven]
    served_alone: Driven
    plain_alone: Driven


def measure(options: Options) -> Findings:
    bundle, images = options.open_bundle(), photos(options.images)
    engine = cpu_engine(bundle)
    with (
        server(options.models, options.model, "--engines", engine) as served,
        ExitStack() as stack,
    ):
        plain = plain_servers(bundle, stack)
        for one in (served, *plain.values()):
            drive(one, steady(one, options.seconds / 2), images)  # warm
        rounds = calm_rounds(
            options.rounds_or(),
            lambda: _round(served, plain, engine, options.seconds, images),
            lambda found: _line(engine, found),
        )
    return Findings(figures=tuple(_figures(engine, rounds)), rounds=tuple(rounds))


def plain_servers(bundle: Bundle, stack: ExitStack) -> dict[str, Served]:
    """By the engine each has: fp32, and INT8 where the bundle has it."""
    return {
        engine: stack.enter_context(
            started("benchmarks.plain_server", str(bundle.folder), "--engine", engine)
        )
        for engine in BARS
        if engine in bundle.manifest.engines
    }


def _round(
    served: Served, plain: Mapping[str, Served], engine: str, seconds: float, images: list[bytes]
) -> Round:
    def driven(one: Served) -> Driven:
        return drive(one, steady(one, seconds), images)

    def driven_alone(one: Served) -> Driven:
        return drive(one, steady(one, seconds / 2, concurrency=1), images)

    return Round(
        served=driven(served),
        plain={name: driven(one) for name, one in plain.items()},
        served_alone=driven_alone(served),
        plain_alone=driven_alone(plain[_same_file(engine)]),
    )


def _figures(engine: str, rounds: list[Round]) -> list[Figure]:
    found = []
    for name in rounds[0].plain:
        pairs = [(one.served, one.plain[name]) for one in rounds]
        told = f"{engine} served / plain server, {name}"
        found += [throughput(told, pairs, bar=BARS[name]), cpu(told, pairs)]
    lone = tuple(
        one.served_alone.latency_ms["p50"] / one.plain_alone.latency_ms["p50"] for one in rounds
    )
    same = _same_file(engine)
    name = f"{engine} served / plain server, {same}: p50 of a lone client"
    return [*found, Figure(name=name, rounds=lone, better="lower", bar=LONE_BAR)]


def _same_file(engine: str) -> str:
    """The engine of ONNX Runtime that runs the file of this one."""
    return {BF16: "fp32", INT8: "int8"}.get(engine, engine)


def _line(engine: str, found: Round) -> str:
    plain = "".join(
        f"; plain server, {name} {one.images_per_second:.1f} at {one.cpu_ms:.1f}"
        for name, one in found.plain.items()
    )
    alone = (found.served_alone.latency_ms["p50"], found.plain_alone.latency_ms["p50"])
    return (
        f"{engine} served {found.served.images_per_second:.1f} images/s at "
        f"{found.served.cpu_ms:.1f} CPU ms an image{plain}; a lone client waits {alone[0]:.1f} ms, "
        f"at the plain server {alone[1]:.1f}"
    )
