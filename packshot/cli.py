"""The `packshot` command: classify files, ask what is served, load-test a server."""

import argparse
import csv
import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from packshot.channel import Tls, read_token
from packshot.client import DEFAULT_TARGET, Client, ImageSource, Result
from packshot.errors import InvalidInput, PackshotError
from packshot.image import SUFFIXES
from packshot.load import LoadPlan, load_images, report_text, run_load

TOKEN = "PACKSHOT_TOKEN"  # noqa: S105  # the variable's name
BAR_FROM = 20  # images: fewer are answered before a bar is of use


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all well, 1 some image or request failed, 2 the command could not run."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except PackshotError as error:
        print(f"packshot: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130


def classify(options: argparse.Namespace) -> int:
    names = _expand(options.images)
    sources: list[ImageSource] = [
        sys.stdin.buffer.read() if name == "-" else name for name in names
    ]
    with _client(options) as client:
        results = client.stream(sources, top_k=options.top_k)
        shown = tqdm(results, total=len(sources), unit="image", disable=_no_bar(len(sources)))
        answers = Answers(names, shown)
        FORMATTERS[options.format](iter(answers), AboveBar())
    return 1 if answers.failures else 0


class AboveBar:
    """Standard output, in whole lines, above the progress bar where both are on a terminal."""

    def __init__(self) -> None:
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            tqdm.write(line)
        return len(text)


class Answers:
    """Results under the names that the user gave; counts the images that could not be used."""

    def __init__(self, names: Sequence[str], results: Iterable[Result]) -> None:
        self._names, self._results = names, results
        self.failures = 0

    def __iter__(self) -> Iterator[Result]:
        for name, result in zip(self._names, self._results, strict=True):
            self.failures += result.error is not None
            yield msgspec.structs.replace(result, name=name)


def model(options: argparse.Namespace) -> int:
    with _client(options) as client:
        info = client.model()
    print(msgspec.json.format(msgspec.json.encode(info)).decode())
    return 0


def load(options: argparse.Namespace) -> int:
    plan = LoadPlan(
        target=options.target,
        model=options.model,
        rate=options.rate,
        concurrency=options.concurrency,
        seconds=options.seconds,
        images_per_request=options.images_per_request,
        timeout_seconds=options.timeout,
    )
    images = load_images(_expand(options.images))
    report = run_load(plan, images, tls=_tls(options), token=_token(options))
    print(msgspec.json.encode(report).decode() if options.json else report_text(report))
    return 1 if report.errors or report.image_errors else 0


def _write_table(results: Iterator[Result], out: "AboveBar") -> None:
    for result in results:
        if result.error is not None:
            print(f"{result.name}  ERROR {result.reason}: {result.error}", file=out)
            continue
        ranked = "  ".join(f"{p.label} {p.probability:.1%}" for p in result.predictions)
        print(f"{result.name}  {ranked}", file=out)


def _write_json(results: Iterator[Result], out: "AboveBar") -> None:
    for result in results:
        record = msgspec.to_builtins(result)
        record.pop("logits")
        print(msgspec.json.encode(record).decode(), file=out)


def _write_csv(results: Iterator[Result], out: "AboveBar") -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "rank", "label", "probability", "error"])
    for result in results:
        if result.error is not None:
            writer.writerow([result.name, "", "", "", f"{result.reason}: {result.error}"])
        for rank, p in enumerate(result.predictions, start=1):
            writer.writerow([result.name, rank, p.label, f"{p.probability:.6f}", ""])


FORMATTERS = {"table": _write_table, "json": _write_json, "csv": _write_csv}


def _expand(patterns: Sequence[str]) -> list[str]:
    """Files, folders (searched for images at any depth), globs and "-" as a flat list of names."""
    names: list[str] = []
    for given in patterns:
        if given == "-" or Path(given).is_file():
            names.append(given)
        elif Path(given).is_dir():
            found = (p for p in sorted(Path(given).rglob("*")) if p.suffix.lower() in SUFFIXES)
            names += [str(path) for path in found]
        else:
            matches = sorted(glob.glob(given, recursive=True))  # noqa: PTH207  # Path.glob refuses absolute patterns
            if not matches:
                raise InvalidInput(f"{given}: no such file, folder or pattern with matches")
            names += [match for match in matches if Path(match).is_file()]
    if not names:
        raise InvalidInput(f"no image in {', '.join(patterns)}")
    return names


def _no_bar(count: int) -> bool:
    return count < BAR_FROM or not sys.stderr.isatty()


def _client(options: argparse.Namespace) -> Client:
    return Client(
        options.target,
        tls=_tls(options),
        token=_token(options),
        model=options.model,
        timeout_seconds=options.timeout,
    )


def _tls(options: argparse.Namespace) -> Tls | bool:
    if options.ca or options.cert or options.key:
        return Tls(ca=options.ca, cert=options.cert, key=options.key)
    return bool(options.tls)


def _token(options: argparse.Namespace) -> str | None:
    """Never a flag of its own: other users of the machine can read a command line."""
    return read_token(options.token_file) if options.token_file else os.environ.get(TOKEN) or None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="packshot", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    verb = _verb(verbs, "classify", classify, "classify images")
    verb.add_argument(
        "images", nargs="+", metavar="FILE|DIR|GLOB|-", help="image files; - reads one from stdin"
    )
    verb.add_argument(
        "--top-k", type=int, default=5, help="labels per image (default: %(default)s)"
    )
    formats = verb.add_mutually_exclusive_group()
    formats.add_argument(
        "--json", dest="format", action="store_const", const="json", help="one JSON object a line"
    )
    formats.add_argument(
        "--csv", dest="format", action="store_const", const="csv", help="one row per image and rank"
    )
    verb.set_defaults(format="table")

    _verb(verbs, "model", model, "show what is being served, by which engine")

    verb = _verb(verbs, "load", load, "send requests for a while and report latency and throughput")
    verb.add_argument("images", nargs="+", metavar="FILE|DIR|GLOB", help="images to send in turn")
    verb.add_argument("--seconds", type=float, default=10.0, help="default: %(default)s")
    verb.add_argument(
        "--rate", type=float, help="requests a second, sent on time however slow the answers are"
    )
    verb.add_argument(
        "--concurrency", type=int, default=16, help="without --rate: requests kept in flight"
    )
    verb.add_argument("--images-per-request", type=int, default=1, help="default: %(default)s")
    verb.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _verb(verbs: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(run=run)
    verb.add_argument("--target", default=DEFAULT_TARGET, help="host:port (default: %(default)s)")
    verb.add_argument("--model", default="", help="name of the model (default: the server's)")
    verb.add_argument(
        "--timeout", type=float, default=30.0, help="seconds per request (default: %(default)s)"
    )
    verb.add_argument("--tls", action="store_true", help="connect by TLS; the next three imply it")
    verb.add_argument("--ca", metavar="FILE", help="PEM file of authorities (default: the usual)")
    verb.add_argument("--cert", metavar="FILE", help="PEM file of this client's certificate")
    verb.add_argument("--key", metavar="FILE", help="PEM file of its private key")
    verb.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"bearer token (default: ${TOKEN}, if set)"
    )
    return verb


if __name__ == "__main__":
    raise SystemExit(main())
