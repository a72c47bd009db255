"""The hops in the model card: from the checkpoint to each engine, what stayed and what was gained.

The section is written between two marks of the training report, anew for each version, so that an
engine can be added without the training run.
"""

from collections.abc import Mapping
from html import escape

from exporters.gates import accuracy_drop
from exporters.speed import BATCHES
from packshot.bundle import EngineFile, Interval, Manifest

BEGIN, END = "<!-- hops -->", "<!-- /hops -->"
HEAD = (
    "engine", "MB", "agreement", "95 % interval", "accuracy", "drop", "95 % interval",
    "|Δlogit| max", "mean", "KL", *(f"ms at {batch}" for batch in BATCHES), "images/s", "proved by",
)  # fmt: skip
COLOUR = "#3566d6"


def with_hops(report: str, manifest: Manifest, sizes: Mapping[str, int]) -> str:
    """The report with its section on the engines. `sizes`: bytes of each engine's file."""
    section = f"{BEGIN}{hops_html(manifest, sizes)}{END}"
    if BEGIN in report and END in report:
        before, _, rest = report.partition(BEGIN)
        return before + section + rest.partition(END)[2]
    before, body, after = report.rpartition("</body>")
    return f"{before}{section}\n{body}{after}"


def hops_html(manifest: Manifest, sizes: Mapping[str, int]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in HEAD)
    rows = "".join(_row(name, file, sizes[name]) for name, file in manifest.engines.items())
    rest = [_left_out(manifest), _attempts(manifest), _chart(manifest)]
    return (
        f"<h2>Engines of version {manifest.version}: from the checkpoint to what is served</h2>"
        f"{_lead(manifest)}"
        '<div style="overflow-x:auto"><table class="rows">'
        f"<tr>{head}</tr>{_pytorch_row(manifest)}{rows}</table></div>{''.join(rest)}"
    )


def _lead(manifest: Manifest) -> str:
    images = max(file.measured.images for file in manifest.engines.values())
    notes = [
        f"Every engine was run on up to {images} images that were not trained on, and compared "
        "with PyTorch's answers. KL: of the probabilities, in nats. Times: median of runs of 1, 8 "
        f"and 32 images on {escape(_processors(manifest))}; images/s at the best of them."
    ]
    if any(file.proved_by == "source" for file in manifest.engines.values()):
        notes.append(
            "Proved by its source: the GPU was not at hand, so the ONNX file that the plan was "
            "built from was run on a CPU. The plan itself is checked by the server that loads it."
        )
    doubts = [f"{name}: {file.caveat}" for name, file in manifest.engines.items() if file.caveat]
    if doubts:
        notes.append(f"What so few images cannot tell. {escape('; '.join(doubts))}.")
    return "".join(f'<p class="lead">{note}</p>' for note in notes)


def _processors(manifest: Manifest) -> str:
    found = dict.fromkeys(file.timed_on for file in manifest.engines.values() if file.timed_on)
    return " and ".join(found) or "no machine"


def _pytorch_row(manifest: Manifest) -> str:
    accuracy = manifest.engines["fp32"].measured.pytorch_accuracy
    cells = ["PyTorch checkpoint", "", "", "", _percent(accuracy)]
    return _cells(cells + [""] * (len(HEAD) - len(cells)))


def _row(name: str, file: EngineFile, size: int) -> str:
    measured = file.measured
    times = {one.batch: one for one in file.timings}
    best = max((one.images_per_second for one in file.timings), default=None)
    return _cells(
        [
            name,
            f"{size / 1e6:.1f}",
            _percent(measured.agreement),
            _interval(measured.agreement_interval),
            _percent(measured.accuracy),
            _percent(accuracy_drop(measured)),
            _interval(measured.accuracy_drop_interval),
            f"{measured.max_logit_difference:.2g}",
            f"{measured.mean_logit_difference:.2g}",
            f"{measured.kl_divergence:.2g}",
            *(f"{times[batch].milliseconds:.1f}" if batch in times else "" for batch in BATCHES),
            "" if best is None else f"{best:.0f}",
            "itself" if file.proved_by == "engine" else "its source",
        ]
    )


def _cells(texts: list[str]) -> str:
    return "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in texts) + "</tr>"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}"


def _left_out(manifest: Manifest) -> str:
    return "".join(
        f'<div class="warning">{escape(name)} is left out: {escape(why)}</div>'
        for name, why in manifest.left_out.items()
    )


def _attempts(manifest: Manifest) -> str:
    rows = "".join(
        _cells(
            [
                f"{name}: {one.way}",
                _percent(one.measured.agreement),
                _percent(one.measured.accuracy),
                f"{one.measured.kl_divergence:.2g}",
                one.fault or "passed",
            ]
        )
        for name, file in manifest.engines.items()
        for one in file.attempts
    )
    if not rows:
        return ""
    head = "".join(f"<th>{text}</th>" for text in ("way", "agreement", "accuracy", "KL", "gate"))
    return f'<h2>Ways to quantise, as tried</h2><table class="rows"><tr>{head}</tr>{rows}</table>'


def _chart(manifest: Manifest) -> str:
    """Bars: images a second of each timed engine at each batch size."""
    timed = {name: file.timings for name, file in manifest.engines.items() if file.timings}
    bars = [(name, one) for name, times in timed.items() for one in times]
    if not bars:
        return ""
    longest = max(one.images_per_second for _, one in bars)
    marks = []
    for i, (name, one) in enumerate(bars):
        y, width = 20 * i, max(1.0, 420 * one.images_per_second / longest)
        marks.append(
            f'<text x="0" y="{y + 13}">{escape(name)}, {one.batch} at a time</text>'
            f'<rect x="190" y="{y + 2}" width="{width:.1f}" height="14" fill="{COLOUR}"/>'
            f'<text x="{196 + width:.1f}" y="{y + 13}">{one.images_per_second:.0f}</text>'
        )
    return (
        f'<h2>Images a second</h2><svg width="680" height="{20 * len(bars)}" role="img">'
        f"{''.join(marks)}</svg>"
    )
