"""Minutes of steady load: does memory grow?

python -m benchmarks.soak --models models --model products --seconds 60 --rounds 5
"""

import numpy as np

from benchmarks.photos import photos
from benchmarks.process import server
from benchmarks.serving import CONCURRENCY, parse_options
from packshot.load import LoadPlan, run_load


def main() -> None:
    options = parse_options(__doc__ or "")
    images = photos()
    with server(options.models, options.model) as served:
        plan = LoadPlan(target=served.target, concurrency=CONCURRENCY, seconds=options.seconds)
        run_load(plan, images)  # warm
        megabytes = [served.resident_megabytes()]
        answered = 0
        for number in range(1, options.rounds + 1):
            report = run_load(plan, images)
            answered += report.answered
            megabytes.append(served.resident_megabytes())
            errors = f", errors {report.errors}" if report.errors else ""
            print(
                f"round {number}: {answered} answered, {megabytes[-1]:.1f} MB{errors}", flush=True
            )
    minutes = np.arange(len(megabytes)) * options.seconds / 60
    slope = float(np.polyfit(minutes, megabytes, 1)[0])
    print(f"slope {slope:+.2f} MB a minute over {minutes[-1]:.1f} minutes")


if __name__ == "__main__":
    main()
