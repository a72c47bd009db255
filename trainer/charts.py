"""Charts as inline SVG: the history of training, reliability, accuracy against coverage."""

from collections.abc import Callable, Mapping, Sequence

from packshot.chart import COLOURS, WIDTH, Frame, area, legend, polyline, side_by_side
from trainer.abstaining import Abstaining
from trainer.coverage import Operation
from trainer.history import Evaluated
from trainer.reliability import Reliability

WORTH_SHOWING = 0.1  # of the images: the precision of fewer jumps, and would set the scale

Line = Sequence[float | None]


def training_charts(history: Sequence[Evaluated]) -> str:
    """Losses, accuracy and, where the log has it, the learning rate, over the evaluations."""
    losses: dict[str, Line] = {
        "training": [one.train_loss for one in history],
        "validation": [one.loss for one in history],
    }
    scores: dict[str, Line] = {
        "accuracy": [one.accuracy for one in history],
        "macro-F1": [one.macro_f1 for one in history],
    }
    rates: dict[str, Line] = {"": [one.learning_rate for one in history]}
    charts = [
        _course("loss", losses, history, None, lambda v: f"{v:.2f}"),
        _course("on validation", scores, history, 1.0, lambda v: f"{v:.0%}"),
    ]
    if any(rate is not None for rate in rates[""]):
        charts.append(_course("learning rate", rates, history, None, _short))
    return side_by_side(charts)


def _course(
    title: str,
    lines: Mapping[str, Line],
    history: Sequence[Evaluated],
    highest: float | None,
    tick: Callable[[float], str],
) -> str:
    """Lines over the evaluations; a dashed line where the size of the pictures changes."""
    measured = [value for values in lines.values() for value in values if value is not None]
    top = highest or max(measured, default=1.0) * 1.05
    frame = Frame(
        title=title,
        x=(1, max(2, len(history))),
        y=(0.0, top),
        x_label="evaluations",
        tick=tick,
    )
    marks = [*_size_marks(frame, history)]
    for values, colour in zip(lines.values(), COLOURS, strict=False):
        points = [(at, value) for at, value in enumerate(values, start=1) if value is not None]
        marks.append(polyline(frame, points, colour))
    return frame.drawn([*marks, *legend(list(lines))])


def _size_marks(frame: Frame, history: Sequence[Evaluated]) -> list[str]:
    marks = []
    for i, one in enumerate(history):
        if i and history[i - 1].size == one.size:
            continue
        x, bottom = frame.place(i + 1, frame.y[0])
        _, top = frame.place(i + 1, frame.y[1])
        aside, anchor = (-3, "end") if x > WIDTH - 60 else (3, "start")  # inside the picture
        marks.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" class="dashed"/>'
            f'<text x="{x + aside:.1f}" y="{bottom + 13}" class="{anchor}">{one.size} px</text>'
        )
    return marks


def reliability_charts(before: Reliability, after: Reliability) -> str:
    """Two diagrams: a bar for each bin, as high as its answers are right."""
    return side_by_side(
        [
            _reliability(f"before: error {before.error:.1%}", before),
            _reliability(f"after: error {after.error:.1%}", after),
        ]
    )


def _reliability(title: str, measured: Reliability) -> str:
    frame = Frame(
        title=title,
        x=(0.0, 1.0),
        y=(0.0, 1.0),
        x_label="probability of the answer (bars: share that is right; darker: more images)",
        tick=_percent,
        x_tick=_percent,
    )
    most = max(one.images for one in measured.bins)
    marks = []
    for one in measured.bins:
        left, top = frame.place(one.low, one.accuracy)
        right, bottom = frame.place(one.high, 0.0)
        ink = 0.25 + 0.65 * one.images / most
        marks.append(
            f'<rect x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" '
            f'height="{bottom - top:.1f}" fill="{COLOURS[0]}" fill-opacity="{ink:.2f}">'
            f"<title>{one.images} images, mean probability {one.confidence:.1%}, "
            f"{one.accuracy:.1%} right</title></rect>"
        )
        x, y = frame.place(one.confidence, one.accuracy)
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="#1d2330"/>')
    (x1, y1), (x2, y2) = frame.place(0, 0), frame.place(1, 1)
    marks.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="dashed"/>')
    return frame.drawn(marks)


def coverage_charts(curve: Sequence[Operation], choice: Abstaining | None) -> str:
    """Precision of the answers given, against the share of images answered and the threshold."""
    measured = [one for one in curve if one.interval is not None]
    return side_by_side([_precision(measured, choice), _answered(measured, choice)])


def _precision(measured: Sequence[Operation], choice: Abstaining | None) -> str:
    """Surest answers first, with the interval. The dot: what was chosen."""
    usual = [one.precision for one in measured if one.coverage >= WORTH_SHOWING and one.precision]
    lowest = min([*usual, choice.target if choice else 1.0])
    frame = Frame(
        title="precision of the answers given, and its interval",
        x=(0.0, 1.0),
        y=(min(0.9, int(lowest * 10) / 10), 1.0),
        x_label="share of the images answered",
        tick=_percent,
        x_tick=_percent,
    )
    band = [(one.coverage, one.interval[0]) for one in measured if one.interval]
    band += [(one.coverage, one.interval[1]) for one in measured[::-1] if one.interval]
    points = [(one.coverage, one.precision) for one in measured if one.precision is not None]
    marks = [
        area(frame, band, COLOURS[0]),
        polyline(frame, [(x, max(y, frame.y[0])) for x, y in points], COLOURS[0]),
    ]
    if choice is not None:
        marks += _chosen(frame, choice)
    return frame.drawn(marks)


def _chosen(frame: Frame, choice: Abstaining) -> list[str]:
    (left, y), (right, _) = frame.place(0, choice.target), frame.place(1, choice.target)
    marks = [
        f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{COLOURS[1]}" '
        'stroke-dasharray="3 3"/>'
    ]
    found = choice.test or choice.validation
    if choice.reached and found.precision is not None:
        ((x, y),) = frame.inside([(found.coverage, found.precision)])
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[1]}"/>')
    return marks


def _answered(measured: Sequence[Operation], choice: Abstaining | None) -> str:
    frame = Frame(
        title="share of the images answered",
        x=(0.0, 1.0),
        y=(0.0, 1.0),
        x_label="probability below which answers abstain",
        tick=_percent,
        x_tick=_percent,
    )
    points = [(1.0, 0.0), *((one.threshold, one.coverage) for one in measured), (0.0, 1.0)]
    marks = [polyline(frame, points, COLOURS[0])]
    if choice is not None and choice.reached:
        found = choice.test or choice.validation
        x, y = frame.place(choice.threshold, found.coverage)
        marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[1]}"/>')
    return frame.drawn(marks)


def _short(value: float) -> str:
    """As 4.7e-4."""
    return f"{value:.1e}".replace("e-0", "e-") if value else "0"


def _percent(value: float) -> str:
    return f"{value:.0%}" if abs(value * 100 - round(value * 100)) < 0.05 else f"{value:.1%}"
