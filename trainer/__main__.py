"""`python -m trainer --data DIR`: a folder of labelled images in, a checkpoint and a report out."""

import sys

from packshot.errors import PackshotError
from trainer.command_line import parse_options


def main() -> int:
    try:
        options = parse_options()
        from trainer.run import run  # PyTorch: what is wrong with an option is said before

        return run(options)
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


if __name__ == "__main__":
    raise SystemExit(main())
