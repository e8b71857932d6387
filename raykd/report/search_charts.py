"""The pictures of a search: what its trials reached, against each value that was drawn."""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes

from raykd.report.charts import Chart, log_axis
from raykd.report.labels import called
from raykd.report.svg import Picture, draw, look
from raykd.report.types import Group, Report, Trial, heading_of
from raykd.tracking.console import rounded


def drawn_values(report: Report) -> Iterator[Chart]:
    """A picture for each axis of a search on which two trials differ."""
    if report.drawn is None:
        return
    heading = heading_of(report.drawn.metric)
    for axis, rule in report.drawn.axes.items():
        trials = [t for t in report.trials if axis in t.config and t.value is not None]
        if len({trial.config[axis] for trial in trials}) < 2:
            continue
        name = axis.removeprefix("run.")
        title = f"{heading[:1].upper()}{heading[1:]} by {name}"
        note = (
            "A mark per trial, in the look of its method and network. Hollow: stopped early, at "
            "the epoch that the table of trials gives."
        )
        yield Chart(title, _scatter(report, trials, axis, rule, title), note)


def _scatter(report: Report, trials: Sequence[Trial], axis: str, rule: str, title: str) -> Picture:
    """The deciding metric of trials against the value of an axis; words stand side by side."""
    values = [trial.config[axis] for trial in trials]
    words = list(dict.fromkeys(map(str, values))) if rule == "choice" else []
    xs = [words.index(str(value)) if words else value for value in values]
    styles = _styles(report)

    def paint(axes: Axes) -> None:
        for x, trial in zip(xs, trials, strict=True):
            style: dict[str, Any] = styles(trial) | {"ls": ""}
            hollow = {"mfc": "none", "mew": 1.2, "mec": style["color"]}
            axes.plot(
                [x], [trial.value or 0.0], **style, **(hollow if trial.state != "finished" else {})
            )
        axes.set(xlabel=axis.removeprefix("run."))
        if words:
            axes.set_xticks(range(len(words)), words)
            axes.set_xlim(-0.5, len(words) - 0.5)
        elif rule == "loguniform" and max(xs) > 3 * min(xs):
            axes.set_xscale("log")
            log_axis(axes.xaxis, (1, 2, 5), "{x:g}")

    ends = ", ".join(
        f"{rounded(value)}: {trial.value:.2f}{'' if trial.state == 'finished' else ' (stopped)'}"
        for value, trial in zip(values, trials, strict=True)
    )
    return draw(paint, f"{title}. {ends}.")


def _styles(report: Report) -> Any:
    """A function: the look of the foreground's line of a trial's method and network."""
    name_of = {
        run.fingerprint: _line(run.recipe) for group in report.students for run in group.runs
    }
    lines = {_line(_first(group)): look(i) for i, group in enumerate(report.foreground)}

    def style(trial: Trial) -> dict[str, Any]:
        return lines.get(name_of.get(trial.fingerprint or "", ("", "")), look(len(lines)))

    return style


def _first(group: Group) -> dict[str, Any]:
    return group.runs[0].recipe


def _line(recipe: dict[str, Any]) -> tuple[str, str]:
    """Method and network of a recipe."""
    return called(recipe["method"]), recipe["model"]
