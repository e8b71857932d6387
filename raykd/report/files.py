"""A report as files that other programs read: Markdown, CSV, JSON."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic_core

from raykd.core.safe_names import printable
from raykd.report.tables import cost_lines, legend, listed, rows, run_cells, sentence, trial_rows
from raykd.report.types import Group, Report, Run

_LEFT = ("what", "network", "hardware", "trial", "state", "settings", "fingerprint", "error")
# Columns of CSV: of the last epoch's metrics, of the result, and all.
_LAST = ("validation_top1", "agreement", "kl")
_RESULT = ("parameters", "flops", "latency_ms", "seconds", "images_per_second", "hardware")
_COLUMNS = ["label", "network", "seed", "fingerprint", "state", "top1", "best", *_LAST, *_RESULT]


def to_markdown(report: Report) -> str:
    """The table as Markdown, with what it says, what it took, and every fingerprint."""
    lines = [row | {"hardware": listed(group.hardware)} for group, row in rows(report)]
    parts = [
        f"# {_quoted(printable(report.name))}",
        _quoted(sentence(report)),
        _table(lines),
        _quoted(legend(report)),
    ]
    if report.searches:
        parts += ["## Searches for anchors", "\n".join(_searches(report))]
    if report.trials:
        parts += ["## Trials", _table([row for _, row in trial_rows(report.trials)])]
    cost = "\n".join(f"- {_quoted(f'{name}: {text}')}" for name, text in cost_lines(report))
    runs = "\n".join(_runs(report, group) for group in (*report.groups(), *report.stages))
    parts = [part for part in parts if part]
    return "\n\n".join([*parts, "## Cost", cost, "## Runs", runs]) + "\n"


def to_csv(report: Report) -> str:
    """A row per run of every line of the table, with a head; empty where there is no number."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(group, run) for group in report.groups() for run in group.runs)
    return out.getvalue()


def to_json(report: Report) -> dict[str, Any]:
    """Everything as plain dicts, lists, text and numbers; what is not a finite number is None."""
    return pydantic_core.from_json(pydantic_core.to_json(report, inf_nan_mode="null"))


def _row(group: Group, run: Run) -> dict[str, Any]:
    """A run by column: percent, nats, milliseconds, seconds, images per second."""
    result = run.result or {}
    last = result.get("last", {})
    return {
        "label": group.label,
        "network": group.network,
        "seed": run.seed,
        "fingerprint": run.fingerprint,
        "state": run.state(),
        "top1": last.get("top1"),
        "best": result.get("best", {}).get("top1"),
        **{key: last.get(key) for key in _LAST},
        **{key: result.get(key) for key in _RESULT},
    }


def _table(lines: Iterable[Mapping[str, str]]) -> str:
    """Lines of the same columns as a table in Markdown."""
    lines = [*lines]
    if not lines:
        return ""
    rule = ["---" if name in _LEFT else "---:" for name in lines[0]]
    texts = [[*lines[0]], rule, *([_quoted(text) for text in row.values()] for row in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in texts)


def _searches(report: Report) -> Iterable[str]:
    """A line for each search: where it is, and what it went by."""
    for search in report.searches:
        anchors = ", ".join(map(str, search.anchors))
        state = "" if search.complete else " so far"
        threshold = search.recipe["threshold"]
        text = f"{search.label}: anchors {anchors}{state}, threshold {threshold}"
        yield f"- {_quoted(text)}, `{search.fingerprint}`"


def _runs(report: Report, group: Group) -> str:
    """A line with the fingerprints of a group, each with its seed, its state and its top-1."""
    runs = []
    for run in group.runs:
        top1 = f", {run_cells(run)['top-1 %']} %" if run.result else ""
        runs.append(f"`{run.fingerprint}` (seed {run.seed}, {run.state()}{top1})")
    return f"- {_quoted(report.called(group))}: {', '.join(runs)}"


def _quoted(text: str) -> str:
    """Text that Markdown shows as it is, in a cell of a table too."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
