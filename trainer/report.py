"""report.html: what a run was made of and how good its result is, in one self-contained page."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from packshot import chart
from packshot.atomic import write_whole
from packshot.intervals import Interval
from trainer import abstaining
from trainer.charts import coverage_charts, reliability_charts, training_charts
from trainer.checkpoint import Checkpoint
from trainer.confusion import confusion_html
from trainer.contact_sheet import Sheet, sheet_html
from trainer.data import Split
from trainer.diagnosis import Finding
from trainer.evaluate import Evaluation
from trainer.history import Evaluated
from trainer.metrics import Metrics
from trainer.recipes import against_band

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2330}
body{max-width:960px;margin:2.5rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
.lead{color:#5a6376;margin:.2rem 0 1.2rem}.figures{display:flex;gap:.8rem;flex-wrap:wrap}
.figure{border:1px solid #dde2ea;border-radius:8px;padding:.7rem 1rem;flex:1 1 11rem}
.figure b{display:block;font-size:1.4rem}.figure span{color:#5a6376;font-size:.85rem}
.figure b,td{font-variant-numeric:tabular-nums}
.warning,.finding,.well{padding:.6rem 1rem;margin:.8rem 0;border-left:4px solid}
.warning{background:#fff4d6;border-color:#e0a100}
.finding{background:#fdebe5;border-color:#d65a35}.well{background:#e8f4ea;border-color:#3c9a55}
.finding p,.finding ul{margin:.2rem 0}
table{border-collapse:collapse}td,th{padding:.25rem .6rem;text-align:right}
th{font-weight:600;color:#5a6376}td:first-child,th:first-child{text-align:left}
.confusion td{width:2.4rem;text-align:center}.wide{overflow-x:auto}
.rows tr{border-top:1px solid #eef1f5}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(140px,1fr));gap:1rem}
.sheet figure{margin:0;font-size:.82rem;line-height:1.35;overflow-wrap:anywhere}
.sheet img{display:block;border-radius:6px;margin-bottom:.3rem}.sheet small{color:#5a6376}
"""
REPORT = "report.html"
LISTED_COPIES = 50


def write_report(
    run: Path,
    record: Checkpoint,
    split: Split,
    history: Sequence[Evaluated],
    metrics: Metrics,
    sheets: Sequence[Sheet],
) -> Path:
    """Writes run/report.html."""
    path = run / REPORT
    write_whole(path, report_html(record, split, history, metrics, sheets).encode())
    return path


def report_html(
    record: Checkpoint,
    split: Split,
    history: Sequence[Evaluated],
    metrics: Metrics,
    sheets: Sequence[Sheet],
) -> str:
    final = record.test or record.validation
    which = "test images" if record.test else "validation images (there are no test images)"
    parts = [
        _head(record),
        _warnings(record, split),
        _figures(record, final, which, split, metrics),
        _band(record, final),
        _diagnosis(metrics.diagnosis),
        _training(history),
        f"<h2>Confusion on {final.images} {which}</h2>",
        confusion_html(final, record.labels),
        f"<h2>Classes, on {which}</h2>",
        _class_table(final),
        f"<h2>Probabilities, on {which}</h2>",
        _calibration(metrics),
        "<h2>Answering less, more surely</h2>",
        _coverage(metrics),
        *(sheet_html(sheet) for sheet in sheets),
        _copies("Leakage: copies in more than one part", split.leaked),
        _copies("Label conflicts: copies of different classes", split.conflicting),
        _damaged(split),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>packshot training report'
        f"</title><style>{STYLE}{chart.STYLE}</style><body>{body}</body></html>\n"
    )


def _head(record: Checkpoint) -> str:
    return (
        f"<h1>{escape(record.architecture)}, {len(record.labels)} classes</h1>"
        f'<p class="lead">recipe {record.recipe.name}, '
        f"weights from {escape(record.weights.source)}, epoch {record.epoch} of "
        f"{record.recipe.epochs}, data {record.data_fingerprint[:12]}</p>"
    )


def _training(history: Sequence[Evaluated]) -> str:
    if not history:
        return "<p>No training: a head was fitted on the backbone's features as they are.</p>"
    return f"<h2>Training</h2>{training_charts(history)}"


def _warnings(record: Checkpoint, split: Split) -> str:
    found = []
    if not record.weights.pretrained:
        found.append(
            f"Trained from {record.weights.source}: fine for the drawn sample, poor for "
            "photographs. Pre-trained weights give far better results on few images."
        )
    if record.epoch < record.recipe.epochs:
        found.append(
            f"The checkpoint is of epoch {record.epoch} of {record.recipe.epochs}"
            f"{'' if record.epoch else ', the head fitted before training'}: later ones were no "
            "better, or the run was interrupted."
        )
    found += [text.split(":\n")[0] for text in split.warnings]  # files left out are listed below
    return "".join(f'<div class="warning">{escape(text)}</div>' for text in found)


def _figures(
    record: Checkpoint, final: Evaluation, which: str, split: Split, metrics: Metrics
) -> str:
    train, calibration = metrics.train, metrics.calibration
    figures = [
        (f"{final.accuracy:.1%}", f"accuracy on {final.images} {which}; {_range(final.interval)}"),
        (f"{final.macro_f1:.3f}", "macro-F1"),
    ]
    if final.top5 is not None and final.top5_interval is not None:
        figures.append(
            (f"{final.top5:.1%}", f"among the first five; {_range(final.top5_interval)}")
        )
    figures += [
        (f"{train.accuracy:.1%}", f"on {train.images} images trained on; {_range(train.interval)}"),
        (
            f"{calibration.after.error:.1%}",
            f"calibration error; {calibration.before.error:.1%} before temperature "
            f"{record.temperature:.2f}",
        ),
        (f"{len(split.train)} / {len(split.val)} / {len(split.test)}", "train / val / test images"),
    ]
    if (floor := record.floor) is not None and record.recipe.epochs:
        told = (
            f"the floor: a head on the frozen backbone, on {floor.images} validation images; "
            f"{_range(floor.interval)}"
        )
        figures.append((f"{floor.accuracy:.1%}", told))
    if rates := metrics.images_per_second:
        sizes = " / ".join(map(str, rates))
        figures.append(
            (
                " / ".join(f"{rate:.0f}" for rate in rates.values()),
                f"images/s trained on, {sizes} px",
            )
        )
    cells = "".join(
        f'<div class="figure"><b>{value}</b><span>{escape(text)}</span></div>'
        for value, text in figures
    )
    return f'<div class="figures">{cells}</div>'


def _range(interval: Interval) -> str:
    return f"95 % interval {interval[0]:.1%} to {interval[1]:.1%}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _band(record: Checkpoint, final: Evaluation) -> str:
    ended = record.interrupted_at is None
    sentence = against_band(record.recipe, final.accuracy) if ended else None
    return f"<p>{escape(sentence)}.</p>" if sentence else ""


def _diagnosis(findings: Sequence[Finding]) -> str:
    if not findings:
        found = '<div class="well">Nothing stands out in training and accuracy.</div>'
    else:
        found = "".join(_finding(finding) for finding in findings)
    return f'<h2>Diagnosis</h2><p class="lead">Intervals are Wilson\'s, 95 %.</p>{found}'


def _finding(finding: Finding) -> str:
    evidence = "".join(f"<p>{escape(_sentence(text))}</p>" for text in finding.evidence)
    remedies = "".join(f"<li>{escape(text)}</li>" for text in finding.remedies)
    return (
        f'<div class="finding"><b>{escape(_sentence(finding.problem))}</b>{evidence}'
        f"<p>What usually helps:</p><ul>{remedies}</ul></div>"
    )


def _class_table(final: Evaluation) -> str:
    rows = "".join(
        f"<tr><td>{escape(c.label)}</td><td>{c.images}</td><td>{c.precision:.3f}</td>"
        f"<td>{c.recall:.3f}</td><td>{c.f1:.3f}</td></tr>"
        for c in final.classes
    )
    head = "<tr><th>class</th><th>images</th><th>precision</th><th>recall</th><th>F1</th></tr>"
    return f'<table class="rows">{head}{rows}</table>'


def _calibration(metrics: Metrics) -> str:
    before, after = metrics.calibration.before, metrics.calibration.after
    return (
        f'<p class="lead">Of the answers given with a probability of 80 %, 80 % should be right. '
        f"The expected calibration error, the mean distance from that, is {before.error:.1%} as "
        f"trained and {after.error:.1%} at temperature {metrics.calibration.temperature:.2f}, "
        f"which was fitted on validation. On {after.images} images even perfect probabilities "
        f"would show about {after.error_by_chance:.1%}.</p>{reliability_charts(before, after)}"
    )


def _coverage(metrics: Metrics) -> str:
    choice = metrics.abstaining
    if choice is None:
        told = (
            "No precision was asked for (--target-precision), so every image is answered. "
            "A server can be asked to abstain all the same (min_confidence)."
        )
    else:
        told = _sentence(abstaining.told(choice))
    return f'<p class="lead">{escape(told)}</p>{coverage_charts(metrics.coverage, choice)}'


def _copies(title: str, groups: Sequence[Sequence[str]]) -> str:
    if not groups:
        return ""
    rows = "".join(
        f"<tr><td>{escape(', '.join(group))}</td></tr>" for group in groups[:LISTED_COPIES]
    )
    return f'<h2>{title}: {len(groups)}</h2><table class="rows">{rows}</table>'


def _damaged(split: Split) -> str:
    if not split.damaged:
        return ""
    rows = "".join(
        f"<tr><td>{escape(file)}</td><td>{escape(fault)}</td></tr>"
        for file, fault in split.damaged.items()
    )
    return f'<h2>Files left out</h2><table class="rows">{rows}</table>'
