"""docs/metrics.md, which `python -m serving.metrics_page` prints."""

import sys

from serving.declared import Row
from serving.metrics import Metrics

INTRODUCTION = """\
# Metrics

Written by `python -m serving.metrics_page`; a test holds it to the code. Series of closed sets of
label values are there from the start, at 0. The usual `process_*` and `python_gc_*` metrics come
along.
"""

TO_WATCH = """\
## What to watch

**Goodput.** What users get: requests answered in time, a second.

    sum(rate(grpc_server_handled_total{grpc_method=~"Classify|Embed|ModelInfer",
      grpc_code="OK"}[5m]))

Its latency is the histogram `packshot_stage_seconds{stage="total"}`; the other stages say where
it goes. `queue` grows first when there is too much work.

**Refusals.** Shedding is a normal state under too much load; if it lasts, add servers.

    sum by (model, reason) (rate(packshot_requests_refused_total[5m]))

`deadline`: the answer would come too late. `queue_full`: more at once than the limits allow.
`shed`: bulk requests that made room for interactive ones.
`packshot_images_dropped_total{reason="expired"}` should stay near 0: such an image was let in and
came too late all the same; `packshot_prediction_ratio` then shows predictions that are too low.

**Saturation.** Scale on it: it rises before anything is refused, whatever the size of requests.

    avg(packshot_saturation)

**A worse engine than hoped for.** Answers stay right, and become slower or cost more.

    packshot_engine_in_use == 1
    increase(packshot_engine_refusals_total[1h])
    increase(packshot_engine_takeovers_total[1h])

A version that stays out, with the reason, for as long as it does:

    packshot_rejected_versions > 0

**Drift of confidence.** Other products, lighting or cameras than those trained on make the network
less sure. Compare the share of unsure answers of an hour with that of a week.

    sum(rate(packshot_top_probability_bucket{le="0.5"}[1h]))
      / sum(rate(packshot_top_probability_count[1h]))

`packshot_images_abstained_total` and the results of `packshot_images_total` other than `ok` tell
of the same from other sides.
"""

HEAD = "| metric | type | labels | unit, buckets | meaning |\n|---|---|---|---|---|\n"


def page() -> str:
    """The introduction, a row a metric, what to watch."""
    rows = Metrics().declared.rows
    return f"{INTRODUCTION}\n{HEAD}{''.join(map(_line, rows))}\n{TO_WATCH}"


def unit_of(name: str) -> str:
    """What a metric counts or measures, as its name says; empty if it says nothing."""
    words = name.removesuffix("_total").split("_")
    return next((unit for unit in ("seconds", "bytes", "images") if unit in words), "")


def _line(row: Row) -> str:
    labels = "; ".join(
        f"`{label}`" + (f": {', '.join(values)}" if values else "")
        for label, values in row.labels.items()
    )
    buckets = ", ".join(f"{bound:g}" for bound in row.buckets)
    scale = "; ".join(part for part in (unit_of(row.name), buckets) if part)
    return f"| `{row.name}` | {row.kind} | {labels} | {scale} | {row.meaning} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
