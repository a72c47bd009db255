"""`packshot classify`: labels of images, as a table, JSON or CSV."""

import argparse
import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from packshot.answers import Result
from packshot.cli_options import add_images, client_of, connected_verb, sources_of
from packshot.cli_progress import AboveBar, with_bar
from packshot.client import Client
from packshot.image_names import image_names, printable
from packshot.outgoing import ImageSource
from packshot.prediction import DEFAULT_TOP_K


def classify(options: argparse.Namespace) -> int:
    names = image_names(options.images)
    sources = sources_of(names)
    with client_of(options) as client:
        results = (_as_they_finish if options.bulk else _in_order)(client, names, sources, options)
        answers = Answers(with_bar(results, len(sources)))
        FORMATTERS[options.format](iter(answers), AboveBar())
    return 1 if answers.failures else 0


def _in_order(
    client: Client,
    names: Sequence[str],
    sources: Sequence[ImageSource],
    options: argparse.Namespace,
) -> Iterator[Result]:
    results = client.classify_lazily(
        sources, top_k=options.top_k, min_confidence=options.min_confidence
    )
    for name, result in zip(names, results, strict=True):
        yield msgspec.structs.replace(result, name=printable(name))


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
        yield msgspec.structs.replace(result, name=printable(names[int(result.name)]))


class Answers:
    """Results to be shown; counts the images that could not be used."""

    def __init__(self, results: Iterable[Result]) -> None:
        self._results = results
        self.failures = 0

    def __iter__(self) -> Iterator[Result]:
        for result in self._results:
            self.failures += result.error is not None
            yield result


def _write_table(results: Iterator[Result], out: AboveBar) -> None:
    for result in results:
        if result.error is not None:
            print(f"{result.name}  ERROR {result.reason}: {result.error}", file=out)
            continue
        ranked = "  ".join(f"{p.label} {p.probability:.1%}" for p in result.predictions)
        unsure = "ABSTAINED  " if result.abstained else ""
        print(f"{result.name}  {unsure}{ranked}", file=out)


def _write_json(results: Iterator[Result], out: AboveBar) -> None:
    for result in results:
        record = msgspec.to_builtins(result)
        record.pop("logits")
        print(msgspec.json.encode(record).decode(), file=out)


def _write_csv(results: Iterator[Result], out: AboveBar) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["name", "rank", "label", "probability", "error", "abstained"])
    for result in results:
        if result.error is not None:
            writer.writerow([result.name, "", "", "", f"{result.reason}: {result.error}", ""])
        abstained = str(result.abstained).lower()
        for rank, p in enumerate(result.predictions, start=1):
            writer.writerow([result.name, rank, p.label, f"{p.probability:.6f}", "", abstained])


FORMATTERS = {"table": _write_table, "json": _write_json, "csv": _write_csv}


def add_classify_verb(verbs: Any) -> None:
    verb = connected_verb(verbs, "classify", classify, "classify images")
    add_images(verb)
    verb.add_argument(
        "--top-k",
        type=int,
        default=DEFAULT_TOP_K,
        help=f"labels per image; 0 stands for {DEFAULT_TOP_K} (default: %(default)s)",
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
    _add_format(verb)


def _add_format(verb: argparse.ArgumentParser) -> None:
    formats = verb.add_mutually_exclusive_group()
    formats.add_argument(
        "--json", dest="format", action="store_const", const="json", help="one JSON object a line"
    )
    formats.add_argument(
        "--csv", dest="format", action="store_const", const="csv", help="one row per image and rank"
    )
    verb.set_defaults(format="table")
