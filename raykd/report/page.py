"""The report of an experiment as one HTML file that needs nothing else: no network, no script.

All that comes from files is escaped.
"""

import itertools
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from raykd.core.safe_names import printable
from raykd.report.elements import figures, table
from raykd.report.style import STYLE
from raykd.report.tables import cost_lines, legend, rows, run_cells, sentence, trial_rows
from raykd.report.types import Report, RouteSearch, Run
from raykd.storage.atomic import write_atomic
from raykd.storage.store import Store

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_page(report: Report, path: Path) -> None:
    """Write the report as one HTML file, atomically."""
    write_atomic(path, page(report).encode())


def publish(report: Report, store: Store) -> Path:
    """Write the report to its place in the store; returns where that is."""
    path = store.root / "reports" / f"{report.name}.html"
    store.write(path, page(report).encode())
    return path


def page(report: Report) -> str:
    """The report as an HTML document; the same report gives the same text."""
    name, listed = escape(printable(report.name)), _Listed()
    sections = (
        ("Results", _results(report)),
        ("Pictures", _pictures(report)),
        ("Routes", _routes(report, listed)),
        ("Trials", _trials(report)),
        ("Cost", _cost(report)),
        ("Runs and recipes", _recipes(report, listed)),
    )
    body = "".join(f"<h2>{title}</h2>{text}\n" for title, text in sections if text)
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
{body}</body>
</html>
"""


class _Listed:
    """Recipes by fingerprint; what two lines share has its anchor where it is listed first."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, fingerprint: str, facts: str, recipe: Mapping[str, Any]) -> str:
        """A recipe behind its fingerprint and some facts, which are HTML."""
        anchor = "" if fingerprint in self._seen else f' id="{escape(fingerprint)}"'
        self._seen.add(fingerprint)
        return (
            f"<details{anchor}><summary><code>{escape(fingerprint)}</code> {facts}</summary>"
            f"<pre>{escape(json.dumps(recipe, indent=2))}</pre></details>"
        )


def _results(report: Report) -> str:
    """The results, each line linked to the runs behind it."""
    lines = []
    for number, (_, row) in enumerate(rows(report)):
        cells = {name: escape(text).replace("+-", "&plusmn;") for name, text in row.items()}
        what, _, settings = cells["what"].partition(" ")
        rank = f'<span class="rank">{cells.pop("rank")}</span>'
        cells["what"] = f'{rank}<a href="#runs-{number}">{what} <small>{settings}</small></a>'
        lines.append(cells)
    note = escape(legend(report)).replace("+-", "&plusmn;")
    return f'{table(lines, "Results")}<p class="note">{note}</p>' if lines else ""


def _pictures(report: Report) -> str:
    """What groups share, with one legend for all, then what a single group has."""
    # matplotlib takes a second to import.
    from raykd.report.charts import charts, sample
    from raykd.report.selection import selections

    shown = figures(itertools.chain(charts(report), selections(report)))
    if not shown:
        return "<p>No epoch is done yet.</p>"
    legend = "".join(
        f'<li><span aria-hidden="true">{sample(number)}</span>{escape(report.called(group))}</li>'
        for number, group in enumerate(report.students)
    )
    return f'<ul class="legend">{legend}</ul>{shown}'


def _routes(report: Report, listed: _Listed) -> str:
    """The pictures of routes, and the students by which searches measured."""
    from raykd.report.routes import route_charts

    return figures(route_charts(report)) + "".join(
        _search(search, listed) for search in report.searches
    )


def _search(search: RouteSearch, listed: _Listed) -> str:
    """A search's stages, linked to their students, and its recipe."""
    steps = []
    for one in search.decisions:
        student = f'<a href="#{escape(one.student)}"><code>{escape(one.student)}</code></a>'
        ratio = f"{one.ratios[one.next]:.2f}"
        steps.append(f"<li>Anchor {one.anchor}: {student}, then {one.next} with r = {ratio}</li>")
    facts = f"finished, anchors {', '.join(map(str, search.anchors))}"
    if not search.complete:
        facts = f"at anchor {search.anchors[-1]}"
    recipe = listed(search.fingerprint, f"the search, {facts}", search.recipe)
    return f"<h3>{escape(search.label)}</h3><ol>{''.join(steps)}</ol>{recipe}"


def _trials(report: Report) -> str:
    """The trials of a sweep, those that failed first, each linked to its student."""
    shown = {run.fingerprint for group in report.groups() for run in group.runs}
    lines = []
    for trial, row in trial_rows(report.trials):
        cells = {name: escape(text) for name, text in row.items()}
        if trial.fingerprint in shown:
            cells["fingerprint"] = f'<a href="#{cells["fingerprint"]}">{cells["fingerprint"]}</a>'
        lines.append(cells)
    return table(lines, "Trials")


def _cost(report: Report) -> str:
    """What it took, and what was spared."""
    lines = cost_lines(report)
    return (
        "<ul>" + "".join(f"<li>{escape(f'{name}: {text}')}</li>" for name, text in lines) + "</ul>"
    )


def _recipes(report: Report, listed: _Listed) -> str:
    """Every run with its fingerprint, its numbers and its recipe."""
    parts = []
    for number, group in enumerate((*report.groups(), *report.stages)):
        parts.append(f'<h3 id="runs-{number}">{escape(report.called(group))}</h3>')
        parts += [listed(run.fingerprint, escape(_facts(run)), run.recipe) for run in group.runs]
    return "".join(parts)


def _facts(run: Run) -> str:
    """What is known of a run, in a line."""
    cells = run_cells(run)
    facts = f"seed {cells.pop('seed')}, {cells.pop('state')}"
    if run.result is not None:
        time = cells.pop("time")
        numbers = [
            f"{name.removesuffix(' %')} {text}{' %' * name.endswith('%')}"
            for name, text in cells.items()
            if text != "-"
        ]
        facts += f" after {time}: {', '.join(numbers)}"
    return facts
