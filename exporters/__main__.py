"""`python -m exporters --run DIR`: a checkpoint in, the next version of a verified bundle out."""

import shlex
import sys
from pathlib import Path

from exporters.command_line import DEFAULT_STORE, AddOptions, parse_options
from packshot.errors import PackshotError
from packshot.store import RELEASED, current_version
from packshot.terminate import interrupt_on_sigterm


def main() -> int:
    interrupt_on_sigterm()
    try:
        options = parse_options(sys.argv[1:])
        if isinstance(options, AddOptions):
            from exporters.add_engine import add_engine

            folder = add_engine(options)
        else:
            from exporters.export import export  # PyTorch, which adding an engine does without

            folder = export(options)
    except PackshotError as error:
        print(f"exporters: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"exporters: nothing was written: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("exporters: interrupted, nothing was written", file=sys.stderr)
        return 130
    print(f"bundle in {folder}")
    if told := not_served(folder):
        print(told)
    return 0


def not_served(folder: Path) -> str:
    """What is served in the place of a version, and how to change that; "" if the version is."""
    model, version = folder.parent, int(folder.name)
    store = "" if model.parent == DEFAULT_STORE else f" --models {shlex.quote(str(model.parent))}"
    remedy = f"`packshot models release {model.name} {version}{store}`"
    try:
        served = current_version(model)
    except PackshotError as error:
        return f"{version} is not served ({error}): {remedy}"
    if served == version or not (model / RELEASED).exists():  # a higher one came beside it
        return ""
    return f"version {served} is released, so {version} is not served: {remedy}"


if __name__ == "__main__":
    raise SystemExit(main())
