"""`python -m serving --models models`: serve a bundle until SIGTERM."""

import logging
import sys

import uvloop

from packshot.errors import PackshotError
from serving.app import App
from serving.command_line import parse_settings, to_toml
from serving.settings import Settings


async def _serve(settings: Settings) -> None:
    await App(settings).run()


def main() -> int:
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        settings = parse_settings()
        if settings.print_config:
            print(to_toml(settings.effective()))
        else:
            uvloop.run(_serve(settings))
    except PackshotError as error:
        print(f"packshot: cannot serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
