"""Options of several commands: which server, how to be let in, which images."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packshot.channel import Tls, read_token
from packshot.client import DEFAULT_TARGET, Client
from packshot.outgoing import ImageSource

TOKEN = "PACKSHOT_TOKEN"  # noqa: S105  # the variable's name


def connected_verb(verbs: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """A command that asks a server for its models."""
    verb = reaching_verb(verbs, name, run, text, timeout_seconds=30.0)
    verb.add_argument("--model", default="", help="name of the model (default: the server's)")
    verb.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"bearer token (default: ${TOKEN}, if set)"
    )
    return verb


def reaching_verb(
    verbs: Any, name: str, run: Any, text: str, *, timeout_seconds: float
) -> argparse.ArgumentParser:
    """A command that reaches a server, by TLS if need be."""
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(run=run)
    verb.add_argument(
        "--target",
        default=DEFAULT_TARGET,
        help="host:port, or a name of gRPC's such as dns:///host:port (default: %(default)s)",
    )
    verb.add_argument(
        "--timeout",
        type=float,
        default=timeout_seconds,
        help="seconds per request (default: %(default)s)",
    )
    verb.add_argument("--tls", action="store_true", help="connect by TLS; the next four imply it")
    verb.add_argument("--ca", metavar="FILE", help="PEM file of authorities (default: the usual)")
    verb.add_argument("--cert", metavar="FILE", help="PEM file of this client's certificate")
    verb.add_argument("--key", metavar="FILE", help="PEM file of its private key")
    verb.add_argument(
        "--server-name",
        metavar="NAME",
        help="name in the server's certificate, where --target has another, such as 127.0.0.1",
    )
    return verb


def add_images(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "images",
        nargs="+",
        metavar="FILE|DIR|GLOB|-",
        help="image files, folders with images at any depth, patterns such as 'shop/*.jpg'; "
        "- reads one image from stdin",
    )


def sources_of(names: Sequence[str]) -> list[ImageSource]:
    """Files by their names; of `-` what standard input holds, read now."""
    return [sys.stdin.buffer.read() if name == "-" else name for name in names]


def client_of(options: argparse.Namespace) -> Client:
    """Of a connected verb."""
    return Client(
        options.target,
        tls=tls_of(options),
        token=token_of(options),
        model=options.model,
        timeout_seconds=options.timeout,
    )


def tls_of(options: argparse.Namespace) -> Tls | bool:
    if options.ca or options.cert or options.key or options.server_name:
        return Tls(
            ca=options.ca, cert=options.cert, key=options.key, server_name=options.server_name
        )
    return bool(options.tls)


def token_of(options: argparse.Namespace) -> str | None:
    """Never a flag of its own: other users of the machine can read a command line."""
    return read_token(options.token_file) if options.token_file else os.environ.get(TOKEN) or None
