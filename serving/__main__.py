"""`python -m serving --models models`: serve a bundle until SIGTERM."""

import logging
import sys

import uvloop

from packshot.errors import PackshotError
from serving.app import App
from serving.settings import Settings, parse_settings


async def _serve(settings: Settings) -> None:
    await App(settings).run()


def main() -> int:
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        uvloop.run(_serve(parse_settings()))
    except PackshotError as error:
        print(f"packshot: cannot serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
