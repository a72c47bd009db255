"""The confusion matrix as HTML, or where it would be too large, the most frequent confusions."""

from collections.abc import Sequence
from html import escape

from trainer.evaluate import Evaluation

MATRIX_CLASSES = 40
LISTED_CONFUSIONS = 50


def confusion_html(final: Evaluation, labels: Sequence[str]) -> str:
    if len(labels) > MATRIX_CLASSES:
        return _list(final, labels)
    return _matrix(final, labels)


def _matrix(final: Evaluation, labels: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    rows = []
    for i, label in enumerate(labels):
        total = max(1, sum(final.confusion[i]))
        cells = "".join(
            _cell(count, count / total, right=i == j) for j, count in enumerate(final.confusion[i])
        )
        rows.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    caption = "<p>Row: the true class. Column: the answer.</p>"
    return (
        f'{caption}<div class="wide"><table class="confusion"><tr><th></th>{head}</tr>'
        f"{''.join(rows)}</table></div>"
    )


def _cell(count: int, share: float, *, right: bool) -> str:
    colour = "53,102,214" if right else "214,90,53"
    ink = "#fff" if share > 0.6 else "inherit"
    style = f"background:rgba({colour},{share:.2f});color:{ink}"
    return f'<td style="{style}">{count or ""}</td>'


def _list(final: Evaluation, labels: Sequence[str]) -> str:
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
