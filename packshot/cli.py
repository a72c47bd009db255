"""The `packshot` command: classify or embed files, probe or load-test a server, tend the store."""

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from tqdm import tqdm

from packshot.answers import Embedding, Result
from packshot.atomic import write_whole
from packshot.cli_connection import connected_verb, tls_of, token_of
from packshot.cli_load import add_load_verb
from packshot.cli_models import add_models_verb
from packshot.cli_probe import add_probe_verb
from packshot.client import Client
from packshot.errors import InvalidInput, PackshotError
from packshot.image_names import image_names
from packshot.outgoing import ImageSource

BAR_FROM = 20  # images: fewer are answered before a bar is of use
EMBEDDED_AT_A_TIME = 256


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
    except OSError as error:  # a full disk, a folder that may not be written to
        print(f"packshot: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def classify(options: argparse.Namespace) -> int:
    names = image_names(options.images)
    sources: list[ImageSource] = [
        sys.stdin.buffer.read() if name == "-" else name for name in names
    ]
    with _client(options) as client:
        results = (_as_they_finish if options.bulk else _in_order)(client, names, sources, options)
        shown = tqdm(results, total=len(sources), unit="image", disable=_no_bar(len(sources)))
        answers = Answers(shown)
        FORMATTERS[options.format](iter(answers), AboveBar())
    return 1 if answers.failures else 0


def _in_order(
    client: Client,
    names: Sequence[str],
    sources: Sequence[ImageSource],
    options: argparse.Namespace,
) -> Iterator[Result]:
    results = client.stream(sources, top_k=options.top_k, min_confidence=options.min_confidence)
    for name, result in zip(names, results, strict=True):
        yield msgspec.structs.replace(result, name=name)


def _as_they_finish(
    client: Client,
    names: Sequence[str],
    sources: Sequence[ImageSource],
    options: argparse.Namespace,
) -> Iterator[Result]:
    items = ((str(number), source) for number, source in enumerate(sources))  # names may be twice
    results = client.classify_stream(
        items, top_k=options.top_k, min_confidence=options.min_confidence
    )
    for result in results:
        yield msgspec.structs.replace(result, name=names[int(result.name)])


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
    """Results to be shown; counts the images that could not be used."""

    def __init__(self, results: Iterable[Result]) -> None:
        self._results = results
        self.failures = 0

    def __iter__(self) -> Iterator[Result]:
        for result in self._results:
            self.failures += result.error is not None
            yield result


def embed(options: argparse.Namespace) -> int:
    if options.out.suffix not in WRITERS:
        raise InvalidInput(f"{options.out}: end its name with {' or '.join(WRITERS)}")
    names = image_names(options.images)
    with _client(options) as client:
        shown = tqdm(
            _embeddings(client, names, options),
            total=len(names), unit="image", disable=_no_bar(len(names)),
        )  # fmt: skip
        found = list(shown)
    try:
        write_whole(options.out, WRITERS[options.out.suffix](found))
    except OSError as error:
        raise InvalidInput(f"{options.out} cannot be written: {error.strerror}") from error
    failed = [one for one in found if one.error is not None]
    for one in failed:
        print(f"{one.name}  ERROR {one.reason}: {one.error}", file=sys.stderr)
    return 1 if failed else 0


def _embeddings(
    client: Client, names: Sequence[str], options: argparse.Namespace
) -> Iterator[Embedding]:
    for start in range(0, len(names), EMBEDDED_AT_A_TIME):
        some = names[start : start + EMBEDDED_AT_A_TIME]
        sources = [sys.stdin.buffer.read() if name == "-" else name for name in some]
        found = client.embed(sources, normalize=options.normalize)
        for name, one in zip(some, found, strict=True):
            yield msgspec.structs.replace(one, name=name)


def _npz(found: Sequence[Embedding]) -> bytes:
    """`names` and `embeddings`, a row each, of the images that could be used."""
    good = [one for one in found if one.error is None]
    file = io.BytesIO()
    rows = np.array([one.embedding for one in good], np.float32)
    np.savez(file, names=np.array([one.name for one in good], str), embeddings=rows)
    return file.getvalue()


def _jsonl(found: Sequence[Embedding]) -> bytes:
    records = [
        {**msgspec.structs.asdict(one), "embedding": one.embedding.tolist()} for one in found
    ]
    return b"".join(msgspec.json.encode(record) + b"\n" for record in records)


WRITERS = {".npz": _npz, ".jsonl": _jsonl}


def model(options: argparse.Namespace) -> int:
    with _client(options) as client:
        info = client.model()
    print(msgspec.json.format(msgspec.json.encode(info)).decode())
    return 0


def _write_table(results: Iterator[Result], out: "AboveBar") -> None:
    for result in results:
        if result.error is not None:
            print(f"{result.name}  ERROR {result.reason}: {result.error}", file=out)
            continue
        ranked = "  ".join(f"{p.label} {p.probability:.1%}" for p in result.predictions)
        unsure = "ABSTAINED  " if result.abstained else ""
        print(f"{result.name}  {unsure}{ranked}", file=out)


def _write_json(results: Iterator[Result], out: "AboveBar") -> None:
    for result in results:
        record = msgspec.to_builtins(result)
        record.pop("logits")
        print(msgspec.json.encode(record).decode(), file=out)


def _write_csv(results: Iterator[Result], out: "AboveBar") -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "rank", "label", "probability", "error", "abstained"])
    for result in results:
        if result.error is not None:
            writer.writerow([result.name, "", "", "", f"{result.reason}: {result.error}", ""])
        abstained = str(result.abstained).lower()
        for rank, p in enumerate(result.predictions, start=1):
            writer.writerow([result.name, rank, p.label, f"{p.probability:.6f}", "", abstained])


FORMATTERS = {"table": _write_table, "json": _write_json, "csv": _write_csv}


def _no_bar(count: int) -> bool:
    return count < BAR_FROM or not sys.stderr.isatty()


def _client(options: argparse.Namespace) -> Client:
    return Client(
        options.target,
        tls=tls_of(options),
        token=token_of(options),
        model=options.model,
        timeout_seconds=options.timeout,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="packshot", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    verb = connected_verb(verbs, "classify", classify, "classify images")
    verb.add_argument(
        "images", nargs="+", metavar="FILE|DIR|GLOB|-", help="image files; - reads one from stdin"
    )
    verb.add_argument(
        "--top-k", type=int, default=5, help="labels per image (default: %(default)s)"
    )
    verb.add_argument(
        "--min-confidence",
        type=float,
        metavar="X",
        help="mark answers less probable than this as abstained (default: the model's threshold)",
    )
    verb.add_argument(
        "--bulk",
        action="store_true",
        help="for many files: print as they finish, let interactive requests go first, wait for a "
        "busy or restarting server",
    )
    formats = verb.add_mutually_exclusive_group()
    formats.add_argument(
        "--json", dest="format", action="store_const", const="json", help="one JSON object a line"
    )
    formats.add_argument(
        "--csv", dest="format", action="store_const", const="csv", help="one row per image and rank"
    )
    verb.set_defaults(format="table")

    verb = connected_verb(
        verbs, "embed", embed, "write what the network sees of images, as vectors"
    )
    verb.add_argument(
        "images", nargs="+", metavar="FILE|DIR|GLOB|-", help="image files; - reads one from stdin"
    )
    verb.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.npz|FILE.jsonl",
        help="arrays `names` and `embeddings` without the images that failed, or an object a line",
    )
    verb.add_argument("--normalize", action="store_true", help="scale to length 1 (L2)")

    connected_verb(verbs, "model", model, "show what is being served, by which engine")

    add_probe_verb(verbs)
    add_load_verb(verbs)
    add_models_verb(verbs)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
