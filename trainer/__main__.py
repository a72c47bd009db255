"""`python -m trainer --data DIR`: a folder of labelled images in, a checkpoint and a report out.

`python -m trainer recipes` prints the recipes and architectures (docs/recipes.md).
`python -m trainer weights fetch` downloads pre-trained weights ahead.
"""

import sys

from packshot.errors import PackshotError
from trainer.command_line import parse_fetching, parse_options


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return _main(given)
    except PackshotError as error:
        # An error in a loader process arrives with that process's traceback in front of it.
        message = str(error)
        worker = "Original Traceback" in message
        print(
            f"trainer: {message.strip().splitlines()[-1] if worker else message}", file=sys.stderr
        )
        return 1
    except OSError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("trainer: interrupted before training: nothing was written", file=sys.stderr)
        return 130


def _main(given: list[str]) -> int:
    """PyTorch is loaded when there is something to do: what is wrong is said at once."""
    if given[:1] == ["recipes"]:
        from trainer.recipe_page import page

        sys.stdout.write(page())
        return 0
    if given[:1] == ["weights"]:
        fetching = parse_fetching(given[1:])
        from trainer.weights import fetch_all

        fetch_all(fetching.arch, fetching.weights, fetching.into)
        return 0
    options = parse_options(given)
    from trainer.run import run

    return run(options)


if __name__ == "__main__":
    raise SystemExit(main())
