"""`packshot load`: how much a server takes, and how long it makes its callers wait."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any, get_args

from packshot.cli_options import connected_verb
from packshot.errors import InvalidInput
from packshot.load_plan import Api, Arrivals, LoadPlan

NEEDED = ("hdrh", "prometheus_client")
DEFAULTS = LoadPlan(target="")


def load(options: argparse.Namespace) -> int:
    """Raises InvalidInput where the extra `load` is not installed: the other commands need none."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise InvalidInput(
            f"the load tester needs {' and '.join(missing)}: `pip install '.[load]'` in packshot's "
            "checkout"
        )
    from packshot.load import command

    return command.load(options)


def add_load_verb(verbs: Any) -> None:
    text = "send requests for a while and report latency and throughput"
    _add_options(connected_verb(verbs, "load", load, text))


def _add_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "images",
        nargs="*",
        metavar="FILE|DIR|GLOB",
        help="image files, folders or patterns, to send in turn (default: generated photographs "
        "of about 200 kB)",
    )
    _add_amount(verb.add_argument_group("how much"))
    _add_content(verb.add_argument_group("what is sent"))
    _add_output(verb.add_argument_group("what is told"))


def default_options() -> argparse.Namespace:
    """Where none is given."""
    parser = argparse.ArgumentParser()
    add_load_verb(parser.add_subparsers())
    return parser.parse_args(["load"])


def _add_amount(what: Any) -> None:
    what.add_argument("--rate", type=float, help="requests a second, however slow the answers are")
    what.add_argument(
        "--arrivals",
        choices=get_args(Arrivals),
        help=f"of a rate (default: {DEFAULTS.arrivals})",
    )
    what.add_argument(
        "--concurrency",
        type=int,
        help=f"without --rate: requests kept in flight (default: {DEFAULTS.concurrency})",
    )
    what.add_argument(
        "--sweep", action="store_true", help="find where it saturates, and its rate within the SLO"
    )
    what.add_argument("--slo-ms", type=float, help="an answer later than this is not in time")
    what.add_argument(
        "--seconds",
        type=float,
        default=DEFAULTS.seconds,
        help="counted, of each rate (default: %(default)s)",
    )
    what.add_argument(
        "--warmup",
        type=float,
        default=DEFAULTS.warmup_seconds,
        help="seconds before, not counted (%(default)s)",
    )
    what.add_argument(
        "--processes",
        type=int,
        default=DEFAULTS.processes,
        help="that send (default: half the cores, at most 8)",
    )
    what.add_argument("--seed", type=int, help="of Poisson arrivals")


def _add_content(sent: Any) -> None:
    sent.add_argument(
        "--images-per-request",
        type=int,
        default=DEFAULTS.images_per_request,
        help="default: %(default)s",
    )
    sent.add_argument("--pixels", action="store_true", help="raw pixels in the place of files")
    sent.add_argument(
        "--api", choices=get_args(Api), default=DEFAULTS.api, help="default: %(default)s"
    )


def _add_output(told: Any) -> None:
    told.add_argument(
        "--metrics-url", metavar="URL", help="the server's http://host:8002/metrics, to add its CPU"
    )
    told.add_argument("--out", type=Path, metavar="FOLDER", help="write load.json and load.html")
    told.add_argument("--json", action="store_true", help="print the results as JSON")
    told.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="send nothing: show two results (load.json, or its folder) side by side",
    )
