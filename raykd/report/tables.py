"""A report as text: sentences, a table for the terminal, Markdown, JSON."""

import re
from collections.abc import Iterable
from typing import Any

import pydantic_core
from rich import box
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from raykd.progress import clock
from raykd.report.labels import called
from raykd.report.types import Group, Report, Summary

LEGEND = (
    "Top-1 is that after the last epoch: mean +- sample standard deviation over n seeds. "
    "Best is the best epoch's, which was chosen on the test images and flatters. "
    "vs label_only: the mean difference of top-1 to the same training without a teacher, seed "
    "by seed, with its 95 % t interval. Agreement: test images answered as the teacher does. "
    "KL: of the student's from the teacher's probabilities, in nats."
)


def sentence(report: Report) -> str:
    """What was run, and how much of it is finished."""
    runs = [run for group in report.students for run in group.runs]
    done = sum(run.result is not None for run in runs)
    networks = _listed(run.recipe["model"] for run in runs)
    data = _listed(run.recipe["data"]["name"] for run in runs)
    methods = _listed(called(run.recipe["method"]) for run in runs)
    return f"{networks} on {data}, trained by {methods}; {done} of {len(runs)} runs are finished."


def cost_sentence(report: Report) -> str:
    """What it took, and on what."""
    cost = report.cost
    hardware = _listed(name for group in report.groups() for name in group.hardware)
    return (
        f"The caches hold {cost.forwards:,} teacher outputs in {decimal(cost.bytes)}, which served "
        f"{cost.epochs:,} epochs of students. Finished runs took {clock(cost.teacher_seconds)} "
        f"(teachers) and {clock(cost.student_seconds)} (students) on {hardware or 'nothing yet'}."
    )


def cells(group: Group) -> dict[str, str]:
    """A line of the table as text, by column; "-" where there is no number."""
    asked, done = len(group.runs), len(group.finished())
    return {
        "what": group.label,
        "network": group.network,
        "parameters": _said("{:.3f} M", group.parameters and group.parameters / 1e6),
        "top-1 %": _said("{0.mean:.2f} +- {0.std:.2f}", group.top1),
        "n": f"{done}" if done == asked else f"{done} of {asked}",
        "best %": _said("{0.mean:.2f}", group.best),
        "vs label_only": _said("{0.mean:+.2f} [{0.low:+.2f}, {0.high:+.2f}]", group.gain),
        "agreement %": _said("{0.mean:.2f} +- {0.std:.2f}", group.agreement),
        "KL": _said("{0.mean:.3f}", group.kl),
        "images/s": _said("{:,.0f}", group.images_per_second),
        "time": "-" if group.seconds is None else clock(group.seconds),
    }


def console_table(report: Report) -> Table:
    """The table for a terminal of 100 columns."""
    title = Text(report.name)  # not a str, whose brackets would be read as markup
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    # Words wrap, long names are cut in two; numbers stay whole.
    table.add_column("what", overflow="fold", min_width=15)
    table.add_column("network", overflow="fold", min_width=9)
    for name in ("params", "top-1 %", "n", "best %", "agree %", "images/s", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in report.groups():
        row = cells(group)
        row["agreement %"] = row["agreement %"].partition(" ")[0]
        del row["vs label_only"], row["KL"]  # for want of room
        style = "yellow" if len(group.finished()) < len(group.runs) else None
        table.add_row(*map(Text, row.values()), style=style)
    return table


def to_markdown(report: Report) -> str:
    """The table as Markdown, with what it says, what it took, and every fingerprint."""
    rows = [cells(group) | {"hardware": _listed(group.hardware)} for group in report.groups()]
    rule = ["---" if name in ("what", "network", "hardware") else "---:" for name in rows[0]]
    table = [[*rows[0]], rule, *([_quoted(text) for text in row.values()] for row in rows)]
    runs = [
        f"- {_quoted(report.called(group))}: "
        + ", ".join(f"`{run.fingerprint}` (seed {run.seed}, {run.state()})" for run in group.runs)
        for group in report.groups()
    ]
    parts = (
        f"# {_quoted(report.name)}",
        _quoted(sentence(report)),
        "\n".join("| " + " | ".join(row) + " |" for row in table),
        LEGEND,
        _quoted(cost_sentence(report)),
        "\n".join(runs),
    )
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """Everything as plain dicts, lists, text and numbers; what is not a finite number is None."""
    return pydantic_core.from_json(pydantic_core.to_json(report, inf_nan_mode="null"))


def _listed(names: Iterable[str]) -> str:
    """Distinct names as a sentence lists them: a, b and c."""
    *most, last = list(dict.fromkeys(names)) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _said(form: str, value: Summary | float | None) -> str:
    """A value as a cell says it; of a single run, the mean with which the form begins."""
    if value is None:
        return "-"
    single = isinstance(value, Summary) and value.std is None
    return (form.partition(" ")[0] if single else form).format(value)


def _quoted(text: str) -> str:
    """Text that Markdown shows as it is, in a cell of a table too."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
