"""`packshot embed`: what the network sees of images, as vectors in a file."""

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from packshot.answers import Embedding
from packshot.atomic import write_whole
from packshot.cli_options import add_images, client_of, connected_verb, sources_of
from packshot.cli_progress import with_bar
from packshot.client import Client
from packshot.errors import InvalidInput
from packshot.image_names import image_names, printable

EMBEDDED_AT_A_TIME = 256


def embed(options: argparse.Namespace) -> int:
    if options.out.suffix not in WRITERS:
        raise InvalidInput(f"{options.out}: end its name with {' or '.join(WRITERS)}")
    names = image_names(options.images)
    with client_of(options) as client:
        found = list(with_bar(_embeddings(client, names, options), len(names)))
    try:
        write_whole(options.out, WRITERS[options.out.suffix](found))
    except OSError as error:
        raise InvalidInput(f"{options.out} cannot be written: {error.strerror}") from error
    failed = [one for one in found if one.error is not None]
    for one in failed:
        print(f"{printable(one.name)}  ERROR {one.reason}: {one.error}", file=sys.stderr)
    return 1 if failed else 0


def _embeddings(
    client: Client, names: Sequence[str], options: argparse.Namespace
) -> Iterator[Embedding]:
    for start in range(0, len(names), EMBEDDED_AT_A_TIME):
        some = names[start : start + EMBEDDED_AT_A_TIME]
        found = client.embed(sources_of(some), normalize=options.normalize)
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
    return b"".join(msgspec.json.encode(_record(one)) + b"\n" for one in found)


def _record(one: Embedding) -> dict[str, Any]:
    return {
        **msgspec.structs.asdict(one),
        "name": printable(one.name),
        "embedding": one.embedding.tolist(),
    }


WRITERS = {".npz": _npz, ".jsonl": _jsonl}


def add_embed_verb(verbs: Any) -> None:
    text = "write what the network sees of images, as vectors"
    verb = connected_verb(verbs, "embed", embed, text)
    add_images(verb)
    verb.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.npz|FILE.jsonl",
        help="arrays `names` and `embeddings` without the images that failed, or an object a line",
    )
    verb.add_argument("--normalize", action="store_true", help="scale to length 1 (L2)")
