"""The `packshot` command: classify or embed files, probe or load-test a server, tend the store."""

import argparse
import sys
from collections.abc import Sequence

import msgspec

from packshot import __version__
from packshot.cli_classify import add_classify_verb
from packshot.cli_embed import add_embed_verb
from packshot.cli_load import add_load_verb
from packshot.cli_models import add_models_verb
from packshot.cli_options import client_of, connected_verb
from packshot.cli_probe import add_probe_verb
from packshot.errors import PackshotError


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


def model(options: argparse.Namespace) -> int:
    with client_of(options) as client:
        info = client.model()
    print(msgspec.json.format(msgspec.json.encode(info)).decode())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="packshot", description=__doc__)
    parser.add_argument("--version", action="version", version=f"packshot {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    add_classify_verb(verbs)
    add_embed_verb(verbs)
    connected_verb(verbs, "model", model, "show what is being served, by which engine")
    add_probe_verb(verbs)
    add_load_verb(verbs)
    add_models_verb(verbs)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
