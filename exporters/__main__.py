"""`python -m exporters --run DIR`: a checkpoint in, the next version of a verified bundle out."""

import sys

from exporters.command_line import AddOptions, parse_options
from packshot.errors import PackshotError
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
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
