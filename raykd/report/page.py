"""The report of an experiment as one HTML file that needs nothing else: no network, no script.

All that comes from files is escaped.
"""

import itertools
import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from raykd.progress import clock
from raykd.report.style import STYLE
from raykd.report.tables import LEGEND, cells, cost_sentence, sentence
from raykd.report.types import Report
from raykd.store import write_atomic

if TYPE_CHECKING:
    from raykd.report.charts import Chart

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LEFT = ("what", "network", "top-1 %", "agreement %", "vs label_only")  # columns


def write_page(report: Report, path: Path) -> None:
    """Write the report as one HTML file, atomically."""
    write_atomic(path, page(report).encode())


def page(report: Report) -> str:
    """The report as an HTML document; the same report gives the same text."""
    name = escape(report.name)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{name}: raykd report</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{name}</h1><p>{escape(sentence(report))}</p>
<h2 id="results">Results</h2>{_table(report)}
<h2>Pictures</h2>{_pictures(report)}
<h2>Cost</h2><p>{escape(cost_sentence(report))}</p>
<h2>Runs and recipes</h2>{_recipes(report)}
</body>
</html>
"""


def _table(report: Report) -> str:
    """The results, each line linked to the runs behind it."""
    names, lines = [], []
    for number, group in enumerate(report.groups()):
        (_, label), *row = cells(group).items()
        names = [name for name, _ in row]
        what, _, settings = escape(label).partition(" ")
        link = f'<a href="#runs-{number}">{what} <small>{settings}</small></a>'
        data = "".join(f"<td{_side(name)}>{escape(text)}</td>" for name, text in row)
        lines.append(f'<tr><th scope="row" class="left">{link}</th>{data}</tr>')
    heads = "".join(
        f'<th scope="col"{_side(name)}>{escape(name)}</th>' for name in ("what", *names)
    )
    table = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return (
        '<div class="scroll" tabindex="0" role="region" aria-labelledby="results">'
        f'<table>{table}</table></div><p class="note">{escape(LEGEND)}</p>'
    ).replace("+-", "&plusmn;")


def _side(column: str) -> str:
    return ' class="left"' if column in _LEFT else ""


def _pictures(report: Report) -> str:
    """What groups share, with one legend for all, then what a single group has."""
    # matplotlib takes a second to import.
    from raykd.report.charts import charts, sample
    from raykd.report.selection import selections

    figures = [
        _figure(chart) for chart in itertools.chain(charts(report), selections(report)) if chart.svg
    ]
    if not figures:
        return "<p>No epoch is done yet.</p>"
    legend = "".join(
        f'<li><span aria-hidden="true">{sample(number)}</span>{escape(report.called(group))}</li>'
        for number, group in enumerate(report.students)
    )
    return f'<ul class="legend">{legend}</ul><div class="figures">{"".join(figures)}</div>'


def _figure(chart: "Chart") -> str:
    """A picture below its title; a wide one scrolls where the screen is narrow."""
    title, picture, kind = escape(chart.title), chart.svg, ""
    if chart.wide:
        scroll = f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        picture, kind = f"{scroll}{picture}</div>", ' class="wide"'
    return (
        f"<figure{kind}><figcaption>{title}</figcaption>{picture}"
        f'<p class="note">{escape(chart.note)}</p></figure>'
    )


def _recipes(report: Report) -> str:
    """Every run with its fingerprint and its recipe."""
    parts = []
    for number, group in enumerate(report.groups()):
        parts.append(f'<h3 id="runs-{number}">{escape(report.called(group))}</h3>')
        for run in group.runs:
            name, facts = escape(run.fingerprint), f"seed {run.seed}, {run.state()}"
            if run.result is not None:
                top1, seconds = run.result["last"]["top1"], run.result["seconds"]
                facts += f" with {top1:.2f} % after {clock(seconds)}"
            parts.append(
                f'<details id="{name}"><summary><code>{name}</code> {facts}</summary>'
                f"<pre>{escape(json.dumps(run.recipe, indent=2))}</pre></details>"
            )
    return "".join(parts)
