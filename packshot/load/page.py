"""load.html: what a load test found, in one self-contained page that needs no script."""

from collections.abc import Iterator
from html import escape

from packshot import chart
from packshot.load.caution import cut_short, doubts_told, shortages
from packshot.load.charts import sweep_charts
from packshot.load.headline import headline
from packshot.load.listing import (
    conditions_table,
    errors_table,
    machines_table,
    percentiles_table,
    rates_table,
    stages_table,
)
from packshot.load.report import LoadReport
from packshot.load.results import Results
from packshot.load.run_charts import run_charts
from packshot.load.sweep import Sweep

STYLE = """
:root{color-scheme:light dark;--ink:#1d2330;--faint:#5a6376;--rule:#e6eaf0;--paper:#fff;
--doubt:#fff4d6;--well:#e8f4ea}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8f0;--faint:#a3adbf;--rule:#2e3543;
--paper:#12161d;--doubt:#3d3313;--well:#17321f}.charts svg{filter:brightness(1.15)}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
body{max-width:960px;margin:2.5rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
.lead{color:var(--faint);margin:.2rem 0 1.2rem}.figures{display:flex;gap:.8rem;flex-wrap:wrap}
.figure{border:1px solid var(--rule);border-radius:8px;padding:.7rem 1rem;flex:1 1 8rem}
.figure b{display:block;font-size:1.2rem;white-space:nowrap}
.figure span{color:var(--faint);font-size:.85rem}
.figure b,td{font-variant-numeric:tabular-nums}
.doubt,.note,.well{padding:.6rem 1rem;margin:.8rem 0;border-left:4px solid}
.doubt{background:var(--doubt);border-color:#e0a100}
.note{border-color:var(--faint)}
.well{background:var(--well);border-color:#3c9a55}
table{border-collapse:collapse;font-size:.85rem}td,th{padding:.25rem .4rem;text-align:right}
th{font-weight:600;color:var(--faint);vertical-align:bottom}
.rows tr{border-top:1px solid var(--rule)}.rows td{white-space:nowrap}
td:first-child,th:first-child,.words td,.words th{text-align:left}
td{vertical-align:top}.wide{margin:.8rem 0;overflow-x:auto}
.rows.words td{white-space:normal;overflow-wrap:anywhere}
.rows.words td:first-child{white-space:nowrap}small{color:var(--faint)}li{margin:.3rem 0}
"""
NO_DOUBT = (
    "The client kept up: no process of it was busy for long, requests were sent when they were "
    "due, and none was left out."
)
COUNTED = (
    "At a rate, a latency counts from the moment when the request was due, not when it was sent: a "
    "slow answer cannot hide by holding back the requests behind it (coordinated omission). With "
    "a number in flight a request is due when the one before it has ended, so that a slow server "
    "is asked less: those latencies are not what independent callers would see.",
    "A rate is told as it was asked for, in images. Arrivals at random come at other moments with "
    "another seed, but as many as that in the warm-up and in what was counted.",
    "Latencies are those of answered requests. What was refused, failed or never sent is in "
    "\u201cnot answered\u201d, and misses the SLO. Answers are images that could be used, and "
    "count by when they came; goodput is those of requests answered within the SLO or, without "
    "one, the deadline.",
    "Intervals hold 95 %. Those of rates are by batch means: the time is cut in ten, and the ten "
    "rates' mean is given Student's t. Those of percentiles are by rank, of any distribution; "
    "\u201cor more\u201d says that there are too few answers to tell an upper end. Answers that "
    "queued behind each other tell less than as many independent ones, so that under overload the "
    "truth is less sure than that; and no interval knows the noise from one test to the next.",
)
SERVER_COUNTED = (
    "The server's figures are what its /metrics said at the end less what they said at the "
    "beginning. Times of decode, queue and total are of images, infer of batches; percentiles are "
    "read off buckets, and as exact as those are. CPU and memory are of the whole process."
)
NO_SERVER = (
    "The server's own figures are missing: stage times, batches, CPU and memory. Give "
    "--metrics-url http://HOST:PORT/metrics, the address that the server logs when it is ready."
)


def page(results: Results) -> str:
    """The whole of load.html."""
    body = "\n".join(_parts(results))
    name = escape(results.served.model)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>load test of {name}</title>'
        f"<style>{STYLE}{chart.STYLE}</style><body>{body}</body></html>\n"
    )


def _parts(results: Results) -> Iterator[str]:
    yield _head(results)
    yield from _doubts(results)
    yield _figures(results)
    if results.sweep is not None:
        yield from _sweep(results.sweep)
        shown = results.sweep.closed
    elif results.run is not None:
        yield from _run(results.run)
        shown = results.run
    else:
        return
    yield f"<h2>What was measured</h2>{conditions_table(results, shown)}"
    yield _explained(results)


def _head(results: Results) -> str:
    served = results.served
    return (
        f"<h1>Load test of {escape(served.model)}</h1>"
        f'<p class="lead">version {escape(served.version)}, engine {escape(served.engine)}, '
        f"{escape(results.created.replace('T', ' ').replace('+00:00', ' UTC'))}</p>"
    )


def _doubts(results: Results) -> Iterator[str]:
    """Above all figures: whoever reads those has read these."""
    doubts = [*cut_short(results.sweep), *doubts_told(results.runs)]
    for text in doubts:
        yield f'<div class="doubt">{escape(_sentence(text))}</div>'
    if not doubts:
        yield f'<div class="well">{NO_DOUBT}</div>'
    for text in shortages(results.runs):
        yield f'<div class="note">{escape(_sentence(text))}</div>'


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _figures(results: Results) -> str:
    cells = "".join(
        f'<div class="figure"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
        for value, text in headline(results)
    )
    return f'<div class="figures">{cells}</div>'


def _sweep(sweep: Sweep) -> Iterator[str]:
    yield f"<h2>By the rate that was offered</h2>{sweep_charts(sweep)}"
    yield f"<h2>All rates</h2>{rates_table(sweep.runs)}"
    yield _errors(sweep.runs)


def _run(run: LoadReport) -> Iterator[str]:
    yield f"<h2>Answers, latencies and stages</h2>{run_charts(run)}"
    yield percentiles_table(run)
    if run.server is not None:
        yield stages_table(run.server)
    yield f"<h2>CPU and memory</h2>{machines_table(run)}"
    yield _errors((run,))


def _errors(runs: tuple[LoadReport, ...]) -> str:
    return f"<h2>Not answered</h2>{errors_table(runs) or '<p>All requests were answered.</p>'}"


def _explained(results: Results) -> str:
    observed = any(run.server for run in results.runs)
    items = "".join(
        f"<li>{text}</li>" for text in (*COUNTED, SERVER_COUNTED if observed else NO_SERVER)
    )
    return f"<h2>How to read it</h2><ul>{items}</ul>"
