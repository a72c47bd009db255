"""The hops in the model card: from the checkpoint to each engine, what stayed and what was gained.

The section is written between two marks of the training report, anew for each version, so that an
engine can be added without the training run.
"""

from collections.abc import Mapping, Sequence
from html import escape

from exporters.gates import accuracy_drop
from exporters.speed import BATCHES
from packshot.bundle import EngineFile, Interval, Manifest

BEGIN, END = "<!-- hops -->", "<!-- /hops -->"
ANSWERS = ("engine", "MB", "agreement", "accuracy", "drop", "|Δlogit|", "mean", "KL", "proved by")
SPEED = ("engine", *(f"ms, {batch} images" for batch in BATCHES), "images/s", "on")
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
    answers = [_answers_row(name, file, sizes[name]) for name, file in manifest.engines.items()]
    return (
        f"<h2>Engines of version {manifest.version}: from the checkpoint to what is served</h2>"
        f"{_lead(manifest)}"
        f"{_table(ANSWERS, [_pytorch_row(manifest), *answers])}"
        f"{_doubts(manifest)}{_left_out(manifest)}{_attempts(manifest)}{_speed(manifest)}"
    )


def _lead(manifest: Manifest) -> str:
    images = max(file.measured.images for file in manifest.engines.values())
    notes = [
        f"Every engine was run on up to {images} images that were not trained on, and compared "
        "with PyTorch's answers. Under a share: its 95 % interval. |Δlogit|: largest difference of "
        "a logit, and mean. KL: of the probabilities, in nats."
    ]
    if any(file.proved_by == "source" for file in manifest.engines.values()):
        notes.append(
            "Proved by its source: the GPU was not at hand, so the ONNX file that the plan was "
            "built from was run on a CPU. The plan itself is checked by the server that loads it."
        )
    notes.append(_abstaining(manifest))
    return "".join(f'<p class="lead">{note}</p>' for note in notes)


def _abstaining(manifest: Manifest) -> str:
    if not manifest.min_confidence:
        return "Every image is answered, unless a request says otherwise (min_confidence 0)."
    return (
        f"Answers less probable than {manifest.min_confidence:.3f} abstain, unless a request says "
        "otherwise (min_confidence)."
    )


def _pytorch_row(manifest: Manifest) -> list[str]:
    accuracy = _percent(manifest.engines["fp32"].measured.pytorch_accuracy)
    cells = ["PyTorch checkpoint", "", "", accuracy]
    return cells + [""] * (len(ANSWERS) - len(cells))


def _answers_row(name: str, file: EngineFile, size: int) -> list[str]:
    measured = file.measured
    return [
        name,
        f"{size / 1e6:.1f}",
        _percent(measured.agreement) + _interval(measured.agreement_interval),
        _percent(measured.accuracy),
        _percent(accuracy_drop(measured)) + _interval(measured.accuracy_drop_interval),
        f"{measured.max_logit_difference:.2g}",
        f"{measured.mean_logit_difference:.2g}",
        f"{measured.kl_divergence:.2g}",
        "itself" if file.proved_by == "engine" else "its source",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The cells of `rows` are HTML."""
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    titles = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(f"<tr>{line}</tr>" for line in [titles, *lines])
    return f'<table class="rows">{body}</table>'


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _interval(interval: Interval | None) -> str:
    """On a line of its own, below the share."""
    return "" if interval is None else f"<br><small>{interval[0]:.1%} to {interval[1]:.1%}</small>"


def _doubts(manifest: Manifest) -> str:
    doubts = [
        f"<li>{escape(f'{name}: {file.caveat}')}</li>"
        for name, file in manifest.engines.items()
        if file.caveat
    ]
    return f"<p>What so few images cannot tell:</p><ul>{''.join(doubts)}</ul>" if doubts else ""


def _left_out(manifest: Manifest) -> str:
    return "".join(
        f'<div class="warning">{escape(name)} is left out: {escape(why)}</div>'
        for name, why in manifest.left_out.items()
    )


def _attempts(manifest: Manifest) -> str:
    rows = [
        [
            escape(f"{name}: {one.way}"),
            _percent(one.measured.agreement),
            _percent(one.measured.accuracy),
            f"{one.measured.kl_divergence:.2g}",
            escape(one.fault) or "passed",
        ]
        for name, file in manifest.engines.items()
        for one in file.attempts
    ]
    if not rows:
        return ""
    head = ("way", "agreement", "accuracy", "KL", "gate")
    return f"<h2>Ways to quantise, as tried</h2>{_table(head, rows)}"


def _speed(manifest: Manifest) -> str:
    timed = {name: file for name, file in manifest.engines.items() if file.timings}
    if not timed:
        return ""
    rows = [
        [
            name,
            *(f"{one.milliseconds:.1f}" for one in file.timings),
            f"{max(one.images_per_second for one in file.timings):.0f}",
            escape(file.timed_on),
        ]
        for name, file in timed.items()
    ]
    return (
        "<h2>Speed where it was exported</h2>"
        '<p class="lead">Median of a few runs, in turns where engines were timed together; '
        "images/s at the best size. Compare within a processor only.</p>"
        f"{_table(SPEED, rows)}{_chart(manifest)}"
    )


def _chart(manifest: Manifest) -> str:
    """Bars: images a second of each timed engine at each batch size."""
    bars = [(name, one) for name, file in manifest.engines.items() for one in file.timings]
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
        f'<p>Images a second</p><svg width="680" height="{20 * len(bars)}" role="img">'
        f"{''.join(marks)}</svg>"
    )
