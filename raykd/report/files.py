"""A report as files that other programs read: Markdown, CSV, JSON."""

import csv
import io
import re
from typing import Any

import pydantic_core
from jinja2 import Environment, PackageLoader

from raykd.core.safe_names import printable
from raykd.report import tables
from raykd.report.comparison import conclusion, standings
from raykd.report.types import Group, Report, Run
from raykd.tasks.base import HEADINGS, headline_in

# Columns of CSV: of the last epoch's metrics, of the result, and all.
_LAST = ("validation_top1", "agreement", "kl", *(name for name in HEADINGS if name != "top1"))
_RESULT = ("parameters", "flops", "latency_ms", "seconds", "images_per_second", "hardware")
_COLUMNS = ["label", "network", "seed", "fingerprint", "state", "top1", "best", *_LAST, *_RESULT]


def to_markdown(report: Report) -> str:
    """The table as Markdown, with the costs, and every run with its fingerprint."""
    environment = Environment(
        autoescape=False, loader=PackageLoader("raykd.report", ""), keep_trailing_newline=True
    )
    environment.filters |= {"text": _escaped, "cells": tables.run_cells}
    return environment.get_template("report.md.j2").render(
        report=report,
        name=printable(report.name),
        conclusion=conclusion(report),
        sentence=tables.sentence(report),
        legend=tables.legend(report),
        rows=[
            row | {"hardware": tables.listed(group.hardware)} for group, row in tables.rows(report)
        ],
        trials=[row for _, row in tables.trial_rows(report)],
        cost=tables.cost_lines(report),
        text_columns=tables.TEXT_COLUMNS,
    )


def to_csv(report: Report) -> str:
    """A row per run of every line of the table, with a head; empty where there is no number."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(to_rows(report))
    return out.getvalue()


def to_rows(report: Report) -> list[dict[str, Any]]:
    """A row per run of every line of the table, by column; None where there is no number."""
    return [_row(group, run) for group in report.groups() for run in group.runs]


def to_json(report: Report) -> dict[str, Any]:
    """Everything as plain dicts, lists, text and numbers; what is not a finite number is None.

    `rank` of a student is the best and the worst place that the intervals leave it; None where it
    is not finished. `docs/json.md` describes the keys.
    """
    value = pydantic_core.from_json(pydantic_core.to_json(report, inf_nan_mode="null"))
    places = {id(group): standing.places for group, standing in standings(report)}
    for group, student in zip(report.students, value["students"], strict=True):
        student["rank"] = places.get(id(group))
    return {"conclusion": conclusion(report)} | value


def _row(group: Group, run: Run) -> dict[str, Any]:
    """A run by column: percent, nats, milliseconds, seconds, images per second."""
    result = run.result or {}
    last, best = result.get("last", {}), result.get("best", {})
    headline = headline_in(best)
    return {
        "label": group.label,
        "network": group.network,
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "state": run.state(),
        "top1": last.get("top1"),
        "best": None if headline is None else best[headline],
        **{key: last.get(key) for key in _LAST},
        **{key: result.get(key) for key in _RESULT},
    }


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in a cell of a table too."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
