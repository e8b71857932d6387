"""The report of an experiment as one HTML file that needs nothing else: no network, no script.

The template is `page.html.j2`, which escapes all text.
"""

import hashlib
import itertools
from base64 import b64encode
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader
from pydantic_core import to_json

from raykd.core.safe_names import printable
from raykd.report import tables
from raykd.report.comparison import conclusion
from raykd.report.types import Report, Run
from raykd.storage.atomic import write_atomic
from raykd.storage.remembered import code
from raykd.storage.store import Store


def write_page(report: Report, path: Path) -> None:
    """Write the report as one HTML file, atomically."""
    write_atomic(path, page(report).encode())


def publish(report: Report, store: Store) -> Path:
    """Write the report to its place in the store; returns its path.

    A page that this raykd has made of an equal report stays as it is.
    """
    path = store.root / "reports" / f"{report.name}.html"
    digest = hashlib.sha256(code().encode() + to_json(report)).hexdigest()
    mark = f"<!-- {digest} -->\n".encode()
    if store.node_cache is not None or not _ends(path, mark):
        store.write(path, page(report).encode() + mark)
    return path


def _ends(path: Path, mark: bytes) -> bool:
    """True for a file whose last bytes are these."""
    return path.is_file() and path.read_bytes().endswith(mark)


def page(report: Report) -> str:
    """The report as an HTML document; equal reports give equal text."""
    # matplotlib takes a second to import.
    from raykd.report.charts import charts, sample
    from raykd.report.route_charts import route_charts
    from raykd.report.search_charts import drawn_values
    from raykd.report.selection_charts import selections

    lines = [row for _, row in tables.rows(report)]
    groups = (*report.shown(), *report.background, *report.stages)  # as the table's lines first
    names = {run.fingerprint for group in report.groups() for run in group.runs}
    environment = Environment(
        autoescape=True, loader=PackageLoader("raykd.report", ""), keep_trailing_newline=True
    )
    environment.filters |= {
        "data_uri": lambda drawn: _data_uri(drawn.svg),
        "facts": partial(_facts, metric=report.metric),
        "json": lambda value: to_json(value, indent=2).decode(),
        "plus_minus": lambda text: text.replace("+-", "\N{PLUS-MINUS SIGN}"),
    }
    seen: set[str] = set()
    environment.tests["first_seen"] = lambda name: not (name in seen or seen.add(name))
    return environment.get_template("page.html.j2").render(
        name=printable(report.name),
        conclusion=conclusion(report),
        sentence=tables.sentence(report),
        legend=tables.legend(report),
        rows=lines,
        columns=[name for name in (lines[0] if lines else {}) if name != "rank"],
        text_columns=tables.TEXT_COLUMNS,
        charts=[*itertools.chain(drawn_values(report), charts(report), selections(report))],
        samples=[
            (sample(number), report.called(group)) for number, group in enumerate(report.foreground)
        ],
        route_charts=[*route_charts(report)],
        searches=report.searches,
        trials=tables.trial_rows(report),
        listed=names,
        cost=tables.cost_lines(report),
        groups=[(report.called(group), group.runs) for group in groups],
    )


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"


def _facts(run: Run, metric: str) -> str:
    """A line about a run: its seed, state and numbers."""
    cells = tables.run_cells(run, metric)
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
