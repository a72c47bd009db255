"""Where the milliseconds of an image go: the server's threads, sampled while it is loaded.

py-spy looks at the Python stacks of the server a hundred times a second, and counts those of
threads that want a core; the server's CPU is shared out by these counts. gRPC's own threads, which
read and write sockets, never run Python and are not seen: theirs is spread over the rest. Writes
flame.svg too. py-spy must be allowed to look into another process: as root, or with
kernel.yama.ptrace_scope at 0.

    python -m benchmarks.flame --models models --model products --out docs
"""

import argparse
import html
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.driven import drive, steady
from benchmarks.options import add_options, chosen, cpu_engine
from benchmarks.process import Served, server
from packshot.load.pictures import photos
from packshot.tables import table

SAMPLES_A_SECOND = 100
PLACES = {  # the innermost frame from one of these files says what a sample was spent on
    "onnxruntime/": "the engine",
    "openvino/": "the engine",
    "packshot/image.py": "decode, resize, crop",
    "prometheus_client/": "metrics",
    "logging/": "log",
    "serving/log": "log",
    "serving/access_log.py": "log",
    "serving/lanes.py": "lanes, around decoder and engine",
    "serving/threads.py": "lanes, around decoder and engine",
    "serving/engines/": "lanes, around decoder and engine",
    "serving/scheduler.py": "admission, queue, batches",
    "serving/admission.py": "admission, queue, batches",
    "serving/latency.py": "admission, queue, batches",
    "serving/waiting.py": "admission, queue, batches",
    "packshot/prediction.py": "softmax, top-k, labels",
    "serving/pipeline.py": "the way between them",
    "serving/api/": "gRPC's adapters, protobuf",
}
ELSEWHERE = "event loop and gRPC's Python side"
TITLE = re.compile(r'(<text id="title"[^>]*>)[^<]*<')


def record(served: Served, seconds: float, form: str, file: Path) -> None:
    """Raises SystemExit if py-spy is not there or may not look."""
    spy = shutil.which("py-spy")
    if spy is None:
        raise SystemExit("py-spy is not installed: pip install py-spy")
    done = subprocess.run(
        [
            spy, "record", "--pid", str(served.process), "--format", form, "--output", str(file),
            "--duration", f"{seconds:.0f}", "--rate", str(SAMPLES_A_SECOND), "--nonblocking",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode or not file.exists():
        raise SystemExit(f"py-spy could not look into the server: {done.stderr.strip()}")


def titled(flame_graph: str, title: str) -> str:
    """py-spy's own title is its command, with the paths of this machine."""
    return TITLE.sub(lambda found: f"{found[1]}{html.escape(title)}<", flame_graph, count=1)


def places(folded: str) -> Counter[str]:
    """Samples by place; `folded`: a line a stack, frames from the outermost, then their number."""
    found: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        files = (frame.rpartition("(")[2] for frame in reversed(stack.split(";")))
        named = (
            place for file in files for start, place in PLACES.items() if file.startswith(start)
        )
        place = next(named, ELSEWHERE)
        found[place] += int(count)
    return found


def rows(found: Counter[str], cpu_ms: float) -> Iterator[tuple[str, str, str]]:
    """`cpu_ms`, of an image, by place."""
    yield ("WHERE", "CPU MS AN IMAGE", "SHARE")
    for place, count in found.most_common():
        share = count / found.total()
        yield (place, f"{cpu_ms * share:.2f}", f"{share:.1%}")
    yield ("all of it", f"{cpu_ms:.2f}", "100%")


def main() -> None:
    given = _parse()
    options = chosen(given)
    engine, images, seconds = (
        cpu_engine(options.open_bundle()),
        photos(options.images),
        options.seconds,
    )
    with (
        server(options.models, options.model, "--engines", engine) as served,
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(1) as pool,
    ):
        plan = steady(served, 2 * seconds + 4)  # both recordings, and py-spy's start
        drive(served, steady(served, seconds), images)  # warm
        loading = pool.submit(drive, served, plan, images)
        folded = Path(folder) / "stacks"
        record(served, seconds, "raw", folded)
        flame_graph = given.out / "flame.svg"
        record(served, seconds, "flamegraph", flame_graph)
        flame_graph.write_text(titled(flame_graph.read_text(), f"{engine} under load"))
        driven = loading.result()
        found = places(folded.read_text())
    print(table(rows(found, driven.cpu_ms)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--out", type=Path, default=Path(), help="folder of flame.svg")
    return parser.parse_args()


if __name__ == "__main__":
    main()
