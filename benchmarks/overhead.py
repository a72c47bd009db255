"""What the server itself costs: CPU a request with an engine and a decoder that answer at once.

The server process's own CPU seconds over the requests that it answered, one image each, 16 in
flight. The floor, in alternating rounds: a gRPC server that reads the same requests and answers a
constant.

    python -m benchmarks --only overhead
"""

import msgspec

from benchmarks.calm import calm_rounds
from benchmarks.driven import Driven, drive, steady
from benchmarks.figures import Figure, Findings
from benchmarks.measured import cpu
from benchmarks.options import Options
from benchmarks.process import Served, server, started

BAR_MS = 0.45
FILE, PIXELS = "5 kB file", "150 kB of pixels"
REQUESTS = {FILE: (bytes(5_000), False), PIXELS: (bytes(224 * 224 * 3), True)}


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """By the kind of request."""

    packshot: dict[str, Driven]
    bare: dict[str, Driven]


def measure(options: Options) -> Findings:
    null = server(
        options.models, options.model, "--engines", "fp32", module="benchmarks.null_server"
    )
    with null as ours, started("benchmarks.bare_server") as bare:
        for one in (ours, bare):
            _driven(one, options.seconds / 4)  # warm

        def take() -> Round:
            return Round(
                packshot=_driven(ours, options.seconds / 2), bare=_driven(bare, options.seconds / 2)
            )

        rounds = calm_rounds(options.rounds_or(), take, _line)
    return Findings(
        figures=(
            _cost(f"a request, {FILE}: CPU without the engine", rounds, FILE, bar=BAR_MS),
            _cost(f"a request, {PIXELS}: CPU without the engine", rounds, PIXELS),
            *(
                cpu(
                    f"a request, {name} / bare gRPC",
                    [(found.packshot[name], found.bare[name]) for found in rounds],
                )
                for name in REQUESTS
            ),
        ),
        rounds=tuple(rounds),
    )


def _driven(served: Served, seconds: float) -> dict[str, Driven]:
    return {
        name: drive(served, steady(served, seconds, pixels=pixels), [image])
        for name, (image, pixels) in REQUESTS.items()
    }


def _cost(name: str, rounds: list[Round], request: str, bar: float | None = None) -> Figure:
    costs = tuple(found.packshot[request].cpu_ms for found in rounds)
    return Figure(name=name, unit="ms", rounds=costs, better="lower", bar=bar)


def _line(found: Round) -> str:
    told = "; ".join(
        f"{name} {found.packshot[name].cpu_ms:.2f}, bare gRPC {found.bare[name].cpu_ms:.2f}"
        for name in REQUESTS
    )
    return f"ms of CPU a request: {told}"
