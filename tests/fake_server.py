"""`python tests/fake_server.py --control DIR ...`: a server whose engine misbehaves on demand.

The engine is the real one, until the test says otherwise: it waits in a run while DIR/hang is
there, raises while DIR/fail is there, and opens only once DIR/closed is gone; another one, if it is
named, only once DIR/held is gone. All other arguments are the server's own.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from serving import listening, reload
from serving.__main__ import main
from serving.engines import Answer, Engine, Images
from serving.engines.open import ENGINES, Wanted

SECRET = "the text of an exception"
LOOK_SECONDS = 0.005


class TroubledEngine:
    """Answers as the engine inside, each run `run_seconds` later."""

    def __init__(self, inside: Engine, control: Path, run_seconds: float) -> None:
        self.name = inside.name
        self.lanes = inside.lanes
        self.lanes_share = inside.lanes_share
        self.one_by_one = inside.one_by_one
        self.largest_alone = inside.largest_alone
        self._inside = inside
        self._control = control
        self._run_seconds = run_seconds

    def run(self, images: Images, *, alone: bool = False) -> Answer:
        time.sleep(self._run_seconds)
        wait_while(self._control / "hang")
        if (self._control / "fail").exists():
            raise RuntimeError(f"{SECRET} in {__file__}")
        return self._inside.run(images, alone=alone)

    def close(self) -> None:
        self._inside.close()


def wait_while(file: Path) -> None:
    while file.exists():
        time.sleep(LOOK_SECONDS)


def troubled(
    open_inside: Callable[[Wanted], Engine], control: Path, run_seconds: float
) -> Callable[[Wanted], Engine]:
    def open_troubled(wanted: Wanted) -> Engine:
        wait_while(control / "closed")
        return TroubledEngine(open_inside(wanted), control, run_seconds)

    return open_troubled


def held(open_inside: Callable[[Wanted], Engine], control: Path) -> Callable[[Wanted], Engine]:
    def open_held(wanted: Wanted) -> Engine:
        wait_while(control / "held")
        return open_inside(wanted)

    return open_held


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--troubled", choices=ENGINES, default="fp32")
    parser.add_argument("--held", choices=ENGINES)
    parser.add_argument("--control", type=Path, required=True)
    parser.add_argument("--run-ms", type=float, default=0.0)
    parser.add_argument("--alone-ms", type=int, help="that a load has to itself")
    parser.add_argument("--patience-ms", type=int, help="with clients that are silent")
    return parser.parse_known_args()


if __name__ == "__main__":
    known, rest = parse()
    kind = ENGINES[known.troubled]
    open_it = troubled(kind.open, known.control, known.run_ms / 1000)
    ENGINES[known.troubled] = kind._replace(open=open_it)
    if known.held:
        kind = ENGINES[known.held]
        ENGINES[known.held] = kind._replace(open=held(kind.open, known.control))
    if known.alone_ms is not None:
        reload.ALONE_SECONDS = known.alone_ms / 1000
    if known.patience_ms:
        listening.HELLO_MS = listening.SILENCE_MS = known.patience_ms
        listening.PONG_MS = known.patience_ms // 3  # a client that lives is quick
    sys.argv[1:] = rest
    raise SystemExit(main())
