"""What the server itself costs: CPU a request with an engine and a decoder that answer at once.

The server process's own CPU seconds over the requests that it answered, one image each, 16 in
flight. The floor, in alternating rounds: a gRPC server that reads the same requests and answers a
constant. The least of the rounds counts: what disturbs a machine only adds.

    python -m benchmarks.overhead --models models --model products
"""

from benchmarks.process import Served, server, started
from benchmarks.serving import CONCURRENCY, parse_options
from packshot.load import LoadPlan, run_load

REQUESTS = {"5 kB file": (bytes(5_000), False), "150 kB of pixels": (bytes(224 * 224 * 3), True)}


def main() -> None:
    options = parse_options(__doc__ or "")
    null = server(
        options.models, options.model, "--engines", "fp32", module="benchmarks.null_server"
    )
    with null as ours, started("benchmarks.bare_server") as bare:
        for name, (image, pixels) in REQUESTS.items():
            costs: dict[str, list[float]] = {}
            for _ in range(options.rounds):
                for server_name, served in (("packshot", ours), ("bare gRPC", bare)):
                    cost = _milliseconds(served, image, pixels, options.seconds)
                    costs.setdefault(server_name, []).append(cost)
            told = ", ".join(f"{server} {min(each):.2f}" for server, each in costs.items())
            print(f"{name}: ms of CPU a request: {told}", flush=True)


def _milliseconds(served: Served, image: bytes, pixels: bool, seconds: float) -> float:
    plan = LoadPlan(target=served.target, concurrency=CONCURRENCY, seconds=seconds, pixels=pixels)
    before = served.cpu_seconds()
    report = run_load(plan, [image])
    return (served.cpu_seconds() - before) / report.answered * 1000


if __name__ == "__main__":
    main()
