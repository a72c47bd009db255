"""report.html: what a run was made of and how good its result is, in one self-contained page."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from packshot.atomic import write_whole
from trainer.checkpoint import Checkpoint
from trainer.data import Split
from trainer.evaluate import Evaluation
from trainer.recipes import against_band

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2330}
body{max-width:960px;margin:2.5rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
.lead{color:#5a6376;margin:.2rem 0 1.5rem}.figures{display:flex;gap:1rem;flex-wrap:wrap}
.figure{border:1px solid #dde2ea;border-radius:8px;padding:.7rem 1rem;min-width:9rem}
.figure b{display:block;font-size:1.5rem}.figure span{color:#5a6376;font-size:.85rem}
.warning{background:#fff4d6;border-left:4px solid #e0a100;padding:.6rem 1rem;margin:1rem 0}
table{border-collapse:collapse}
td,th{padding:.25rem .6rem;text-align:right;font-variant-numeric:tabular-nums}
th{font-weight:600;color:#5a6376}td:first-child,th:first-child{text-align:left}
.confusion td{width:2.4rem;text-align:center}.charts{display:flex;gap:2rem;flex-wrap:wrap}
.rows tr{border-top:1px solid #eef1f5}svg text{font:11px system-ui,sans-serif;fill:#5a6376}
"""
REPORT = "report.html"
MATRIX_CLASSES = 40  # with more of them, the most frequent confusions are listed instead
LISTED_CONFUSIONS = 50
LISTED_COPIES = 50
COLOURS = ("#3566d6", "#d65a35")


def write_report(run: Path, record: Checkpoint, split: Split) -> Path:
    """Writes run/report.html from the checkpoint, its split and the run's log."""
    path = run / REPORT
    write_whole(path, report_html(record, split, read_evaluations(run / "log.jsonl")).encode())
    return path


def read_evaluations(log: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == "evaluation"]


def report_html(record: Checkpoint, split: Split, evaluations: Sequence[dict[str, Any]]) -> str:
    final = record.test or record.validation
    which = "test images" if record.test else "validation images (there are no test images)"
    parts = [
        f"<h1>{escape(record.architecture)}, {len(record.labels)} classes</h1>",
        f'<p class="lead">recipe {record.recipe.name}, '
        f"weights from {escape(record.weights.source)}, epoch {record.epoch} of "
        f"{record.recipe.epochs}, data {record.data_fingerprint[:12]}</p>",
        _warnings(record, split),
        _figures(record, final, which, split),
        _band(record, final),
        "<h2>Training</h2>",
        _charts(evaluations),
        f"<h2>Confusion on {final.images} {which}</h2>",
        _confusion(final, record.labels),
        f"<h2>Classes, on {which}</h2>",
        _class_table(final),
        _copies("Leakage: copies in more than one part", split.leaked),
        _copies("Label conflicts: copies of different classes", split.conflicting),
        _damaged(split),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>packshot training report'
        f"</title><style>{STYLE}</style><body>{body}</body></html>\n"
    )


def _warnings(record: Checkpoint, split: Split) -> str:
    found = []
    if not record.weights.pretrained:
        found.append(
            f"Trained from {record.weights.source}: fine for the drawn sample, poor for "
            "photographs. Pre-trained weights give far better results on few images."
        )
    if record.epoch < record.recipe.epochs:
        found.append(
            f"The checkpoint is of epoch {record.epoch} of {record.recipe.epochs}: later ones were "
            "no better, or the run was interrupted."
        )
    found += [text.split(":\n")[0] for text in split.warnings]  # files left out are listed below
    return "".join(f'<div class="warning">{escape(text)}</div>' for text in found)


def _figures(record: Checkpoint, final: Evaluation, which: str, split: Split) -> str:
    low, high = final.interval
    figures = [
        (f"{final.accuracy:.1%}", f"accuracy on {final.images} {which}"),
        (f"{low:.1%} – {high:.1%}", "95 % interval (Wilson)"),
        (f"{final.macro_f1:.3f}", "macro-F1"),
        (f"{record.temperature:.2f}", "temperature, fitted on validation"),
        (f"{len(split.train)} / {len(split.val)} / {len(split.test)}", "train / val / test images"),
    ]
    cells = "".join(
        f'<div class="figure"><b>{value}</b><span>{escape(text)}</span></div>'
        for value, text in figures
    )
    return f'<div class="figures">{cells}</div>'


def _band(record: Checkpoint, final: Evaluation) -> str:
    sentence = against_band(record.recipe, final.accuracy)
    return f"<p>{escape(sentence)}.</p>" if sentence else ""


def _charts(evaluations: Sequence[dict[str, Any]]) -> str:
    losses = {
        "train": [e["moment"]["train_loss"] for e in evaluations],
        "validation": [e["validation"]["loss"] for e in evaluations],
    }
    accuracies = {"validation": [e["validation"]["accuracy"] for e in evaluations]}
    sizes = [e["validation"]["image_size"] for e in evaluations]
    return (
        f'<div class="charts">{_chart("loss", losses, sizes)}'
        f"{_chart('accuracy', accuracies, sizes, top=1.0)}</div>"
    )


def _chart(
    title: str, series: dict[str, list[float | None]], sizes: list[int], top: float | None = None
) -> str:
    """Lines over the evaluations; a dashed line where the size of the pictures changes."""
    width, height, left, bottom = 420, 220, 40, 30
    finite = [v for values in series.values() for v in values if v is not None]
    highest = top or max(finite, default=1.0) * 1.05
    count = max(2, len(sizes))

    def x(i: int) -> float:
        return left + (width - left - 10) * i / (count - 1)

    def y(value: float) -> float:
        return 20 + (height - 20 - bottom) * (1 - value / highest)

    marks = [f'<text x="{left}" y="12">{title}</text>']
    for share in (0.0, 0.5, 1.0):
        level = y(share * highest)
        marks.append(f'<line x1="{left}" x2="{width}" y1="{level}" y2="{level}" stroke="#e6eaf0"/>')
        marks.append(f'<text x="4" y="{level + 4:.0f}">{share * highest:.2f}</text>')
    for i, size in enumerate(sizes):
        if i == 0 or sizes[i - 1] != size:
            marks.append(
                f'<line x1="{x(i):.1f}" x2="{x(i):.1f}" y1="20" y2="{height - bottom}" '
                f'stroke="#b9c1ce" stroke-dasharray="3 3"/>'
                f'<text x="{x(i):.1f}" y="{height - 16}">{size} px</text>'
            )
    for i, (name, values) in enumerate(series.items()):
        colour = COLOURS[i]
        points = [(x(at), y(v)) for at, v in enumerate(values) if v is not None]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        offset = left + 70 + 80 * i
        marks.append(f'<text x="{offset}" y="12" style="fill:{colour}">{name}</text>')
    marks.append(f'<text x="{width - 75}" y="{height - 2}">evaluations</text>')
    return f'<svg width="{width}" height="{height}" role="img">{"".join(marks)}</svg>'


def _confusion(final: Evaluation, labels: Sequence[str]) -> str:
    if len(labels) > MATRIX_CLASSES:
        return _confusion_list(final, labels)
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    rows = []
    for i, label in enumerate(labels):
        total = max(1, sum(final.confusion[i]))
        cells = "".join(
            _confusion_cell(count, count / total, right=i == j)
            for j, count in enumerate(final.confusion[i])
        )
        rows.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    caption = "<p>Row: the true class. Column: the answer.</p>"
    return f'{caption}<table class="confusion"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


def _confusion_list(final: Evaluation, labels: Sequence[str]) -> str:
    counts = sorted(
        (
            (count, labels[i], labels[j])
            for i, row in enumerate(final.confusion)
            for j, count in enumerate(row)
            if count and i != j
        ),
        reverse=True,
    )
    rows = "".join(
        f"<tr><td>{escape(true)}</td><td>{escape(answer)}</td><td>{count}</td></tr>"
        for count, true, answer in counts[:LISTED_CONFUSIONS]
    )
    head = "<tr><th>true class</th><th>answer</th><th>images</th></tr>"
    return f'<table class="rows">{head}{rows}</table>'


def _confusion_cell(count: int, share: float, *, right: bool) -> str:
    colour = "53,102,214" if right else "214,90,53"
    ink = "#fff" if share > 0.6 else "inherit"
    style = f"background:rgba({colour},{share:.2f});color:{ink}"
    return f'<td style="{style}">{count or ""}</td>'


def _class_table(final: Evaluation) -> str:
    rows = "".join(
        f"<tr><td>{escape(c.label)}</td><td>{c.images}</td><td>{c.precision:.3f}</td>"
        f"<td>{c.recall:.3f}</td><td>{c.f1:.3f}</td></tr>"
        for c in final.classes
    )
    head = "<tr><th>class</th><th>images</th><th>precision</th><th>recall</th><th>F1</th></tr>"
    return f'<table class="rows">{head}{rows}</table>'


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
