"""Minutes of steady load: does memory grow?

python -m benchmarks.soak --models models --model products --seconds 60 --rounds 5
"""

import numpy as np

from benchmarks.driven import drive, steady
from benchmarks.options import parse_options
from benchmarks.process import server
from packshot.load.pictures import photos


def main() -> None:
    options = parse_options(__doc__)
    images = photos(options.images)
    with server(options.models, options.model) as served:
        plan = steady(served, options.seconds)
        megabytes = [drive(served, plan, images).megabytes]  # warm
        answered = 0
        for number in range(1, options.rounds_or() + 1):
            found = drive(served, plan, images)
            answered += found.answered
            megabytes.append(found.megabytes)
            errors = f", errors {found.errors}" if found.errors else ""
            print(
                f"round {number}: {answered} answered, {megabytes[-1]:.1f} MB{errors}", flush=True
            )
    minutes = np.arange(len(megabytes)) * options.seconds / 60
    slope = float(np.polyfit(minutes, megabytes, 1)[0])
    print(f"slope {slope:+.2f} MB a minute over {minutes[-1]:.1f} minutes")


if __name__ == "__main__":
    main()
