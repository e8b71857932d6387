"""What a page is made of: tables and figures. All that comes from files is escaped here."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raykd.report.charts import Chart

LEFT = ("what", "network", "trial", "state", "settings", "fingerprint")  # columns of words


def table(lines: Iterable[Mapping[str, str]], name: str) -> str:
    """Lines of the same columns, whose cells are HTML, as a table that scrolls in its place.

    The first column heads its line. A line's `error`, if it has one, stands below it.
    """
    lines, shown = [*lines], []
    if not lines:
        return ""
    names = [name for name in lines[0] if name != "error"]
    for line in lines:
        first, *rest = names
        data = "".join(f"<td{_side(name)}>{line[name]}</td>" for name in rest)
        shown.append(f'<tr><th scope="row" class="left">{line[first]}</th>{data}</tr>')
        if line.get("error"):
            error = f"<span>{line['error']}</span>"
            shown.append(f'<tr><td class="error" colspan="{len(names)}">{error}</td></tr>')
    heads = "".join(f'<th scope="col"{_side(name)}>{escape(name)}</th>' for name in names)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(shown)}</tbody></table></div>"
    )


def figure(chart: "Chart") -> str:
    """A picture below its title; a wide one scrolls where the screen is narrow."""
    title, picture, kind = escape(chart.title), chart.svg, ""
    if chart.wide:
        scroll = f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        picture, kind = f"{scroll}{picture}</div>", ' class="wide"'
    return (
        f"<figure{kind}><figcaption>{title}</figcaption>{picture}"
        f'<p class="note">{escape(chart.note)}</p></figure>'
    )


def figures(charts: Iterable["Chart"]) -> str:
    """The pictures that there are, side by side where there is room."""
    shown = "".join(figure(chart) for chart in charts if chart.svg)
    return f'<div class="figures">{shown}</div>' if shown else ""


def _side(column: str) -> str:
    return ' class="left"' if column in LEFT else ""
