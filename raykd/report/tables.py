"""A report as text: sentences, the lines of its tables, the table for a terminal."""

import math
import re
from collections.abc import Iterable

from rich import box
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from raykd.core.safe_names import printable, printable_lines
from raykd.report.comparison import conclusion, standings
from raykd.report.labels import called
from raykd.report.types import Group, Report, Run, Summary, Trial, heading_of
from raykd.tasks.base import HEADINGS
from raykd.tracking.console import clock, rounded

# Columns of text, which is aligned to the left; the others hold numbers.
_MEASURES = {
    "top1": "Top-1: test images that are answered rightly.",
    "knn_top1": "k-NN: the probe's test images whose nearest training images, by their embeddings, "
    "vote for the right class.",
    "linear_top1": "Linear: those that a linear classifier of the embeddings answers rightly.",
    "recall_at_1": "Recall@1: images whose nearest one in the gallery is of their class.",
    "map": "mAP: precision of the gallery's ranking at each image of the class, averaged.",
    "map_at_r": "MAP@R: the same up to rank R alone, the number of images of the class.",
    "verification": "Verification: pairs of faces that are rightly held to be of one person or of "
    "two, each fold with the threshold of the others.",
    "cka": "CKA: alignment of the embeddings of the test images with the teacher's, 100 where one "
    "is a rotation and a scaling of the other.",
}
PUBLISHED = "published %"
TEXT_COLUMNS = ("what", "network", "hardware", "trial", "state", "settings", "fingerprint", "error")


def sentence(report: Report) -> str:
    """Sentence: runs, and how many of them are finished."""
    runs = [run for group in report.students for run in group.runs]
    if not runs:
        return "No student is known yet."
    count = f"{sum(run.result is not None for run in runs)} of {len(runs)}"
    networks = listed(run.recipe["model"] for run in runs)
    data = listed(run.recipe["data"]["name"] for run in runs)
    methods = listed(called(run.recipe["method"]) for run in runs)
    return f"{networks} on {data}, trained by {methods}; {count} runs are finished."


def legend(report: Report) -> str:
    """Notes on the columns of the table."""
    recipes = [run.recipe for group in report.students for run in group.runs]
    shares = {recipe["data"].get("validation") for recipe in recipes}
    selection = "which was chosen on the test images and is optimistic"
    if None not in shares:
        selection = "which was chosen on validation images that nothing was trained on"
    elif len(shares) > 1:
        selection += ", unless a run holds out validation images: then on those"
    over = f"{report.baseline!r}, the same seed"
    if report.baseline is None:
        over = "the same training without a teacher"
    gains = (
        f" {versus(report)}: the mean difference of {report.measure} to {over}, seed by seed, with "
        "its 95 % t interval"
    )
    methods = {recipe["method"]["name"] for recipe in recipes}
    if not has_gains(report):
        gains = ""
    elif report.baseline is None and "label_only" not in methods:
        gains += "; the experiment has none, so add label_only, or name a line with --baseline"
    elif any(recipe.get("after") for recipe in recipes):
        gains += "; a student of several stages was trained that many times as long"
    gains += "." if gains else ""
    measures = " ".join(_MEASURES[name] for name in (report.metric, *report.others))
    if report.labelled:
        measures = (
            "Agreement: test images answered as the teacher does. KL: of the student's from the "
            "teacher's probabilities, in nats."
        )
    sources = [str(group.published["source"]) for group in report.students if group.published]
    if sources:
        measures += (
            f" {PUBLISHED.capitalize()}: {report.measure} of the same pair in {listed(sources)}."
        )
    views = ""
    if share_views(report):
        views = (
            " Seeds share their augmentation (and so a cache), so the deviation lacks its part: "
            "run.views_by_seed: true varies it."
        )
    if report.drawn is not None:
        views += (
            " Of each method and network the best of its trials by "
            f"{heading_of(report.drawn.metric)} stands here, which favours those with more trials."
        )
    return (
        f"Students are ranked by their {report.measure} after the last epoch, those with "
        "unfinished runs at the end: mean +- sample standard deviation over n seeds. A rank is "
        "given as far as 95 % intervals of the differences, seed by seed, tell the lines apart: "
        f"2-4 is any of these, none is any at all.{views} Best is the best "
        f"epoch's, {selection}.{gains} {measures} FLOPs and latency are of one image's forward."
    )


def has_gains(report: Report) -> bool:
    """True where there can be gains: without labels nothing is trained without a teacher."""
    return report.labelled or report.baseline is not None


def share_views(report: Report) -> bool:
    """True where a deviation over seeds is one over students with the same augmentation."""
    for group in report.students:
        seeds = {run.recipe["seed"] for run in group.runs}
        for recipe in (run.recipe for run in group.runs):
            augmented = any(recipe["data"]["augment"].values())
            if len(seeds) > 1 and augmented and not recipe["views_by_seed"]:
                return True
    return False


def versus(report: Report) -> str:
    """Heading of the column of gains."""
    return "vs label_only" if report.baseline is None else "vs baseline"


def cost_lines(report: Report) -> list[tuple[str, str]]:
    """Costs and savings by sharing, each as (name, sentence)."""
    cost = report.cost
    lines = [
        (
            "caches",
            f"{cost.forwards:,} teacher outputs in {decimal(cost.bytes)}, which served "
            f"{cost.epochs:,} epochs of students",
        )
    ]
    for shared in cost.shared:
        if shared.alone:
            spared = shared.alone - shared.together
            lines.append(
                (
                    shared.what,
                    f"{shared.together:,} where the finished students alone would have needed "
                    f"{shared.alone:,}: {spared:,} saved ({100 * spared / shared.alone:.0f} %)",
                )
            )
    for name, hours in cost.hours.items():
        kind = "CPU-hours" if re.search(r"\(\d+ cores\)$", name) else "GPU-hours"
        lines.append((kind, f"{hours:,.3g} of workers that train, on {name}"))
    took = f"teachers {clock(cost.teacher_seconds)}, students {clock(cost.student_seconds)}"
    return [*lines, ("time of finished trainings", took)]


def rows(report: Report) -> list[tuple[Group, dict[str, str]]]:
    """The groups in the order of the table, with its cells by column."""
    ranks = {id(group): standing.rank for group, standing in standings(report)}
    absent = {"agreement %", "KL"} if not report.labelled else set[str]()
    if not any(group.validation for group in report.students):
        absent.add("validation %")
    if not has_gains(report):
        absent.add(versus(report))
    if not any(group.published for group in report.students):
        absent.add(PUBLISHED)
    lines = []
    for group in report.shown():
        headings = [HEADINGS[name] for name in report.others]
        line = {"rank": ranks.get(id(group), "")}
        line |= cells(group, versus(report), report.heading, headings)
        if report.drawn is not None and group.score is None and (runs := group.traced()):
            reached = runs[0].metrics[-1].get(report.metric)
            line[report.heading] = f"{_text('{:.2f}', reached)} at epoch {len(runs[0].metrics)}"
        lines.append((group, {name: text for name, text in line.items() if name not in absent}))
    return lines


def cells(
    group: Group, gain: str = "gain", score: str = "top-1 %", others: Iterable[str] = ()
) -> dict[str, str]:
    """A line of the table as text, by column; "-" where there is no number.

    `gain` and `score` are the headings of these columns, `others` those of further metrics.
    """
    total, finished = len(group.runs), len(group.finished())
    return {
        "what": group.label,
        "network": group.network,
        score: _text("{0.mean:.2f} +- {0.std:.2f}", group.score),
        "n": f"{finished}" if finished == total else f"{finished} of {total}",
        PUBLISHED: _text("{:.2f}", None if group.published is None else group.published["score"]),
        "best %": _text("{0.mean:.2f}", group.best),
        "validation %": _text("{0.mean:.2f}", group.validation),
        **{name: _text("{0.mean:.2f} +- {0.std:.2f}", group.others.get(name)) for name in others},
        gain: _text("{0.mean:+.2f} [{0.low:+.2f}, {0.high:+.2f}]", group.gain),
        "agreement %": _text("{0.mean:.2f} +- {0.std:.2f}", group.agreement),
        "KL": _text("{0.mean:.3f}", group.kl),
        "parameters": _text("{:.3f} M", group.parameters and group.parameters / 1e6),
        "MFLOPs": _text("{:,.1f}", group.flops and group.flops / 1e6),
        "latency ms": _text("{:.2f}", group.latency_ms),
        "images/s": _text("{:,.0f}", group.images_per_second),
        "time": "-" if group.seconds is None else clock(group.seconds),
    }


def run_cells(run: Run, metric: str = "top1") -> dict[str, str]:
    """A run as text, by column; "-" where there is no number."""
    result = run.result or {"last": {}, "best": {}}
    last, best = result["last"], result["best"]
    return {
        "seed": str(run.seed),
        "state": run.state(),
        HEADINGS[metric]: _text("{:.2f}", last.get(metric)),
        "best %": _text("{:.2f}", best.get(metric)),
        "validation %": _text("{:.2f}", last.get(f"validation_{metric}")),
        **{
            heading: _text("{:.2f}", last.get(name))
            for name, heading in HEADINGS.items()
            if name != metric and name in last
        },
        "agreement %": _text("{:.2f}", last.get("agreement")),
        "KL": _text("{:.3f}", last.get("kl")),
        "time": clock(result["seconds"]) if run.result else "-",
    }


def trial_rows(report: Report) -> list[tuple[Trial, dict[str, str]]]:
    """Trials with their cells by column: the failed ones first, then the best by what decides."""
    metric, mode = (report.drawn.metric, report.drawn.mode) if report.drawn else ("", "max")
    columns = {heading_of(metric): "value"} if metric else {}
    columns |= {report.heading: "score"}
    columns = {
        heading: key
        for heading, key in columns.items()
        if any(getattr(trial, key) is not None for trial in report.trials)
    }

    def place(trial: Trial) -> tuple[bool, float]:
        value = trial.score if trial.value is None else trial.value
        if value is None or math.isnan(value):
            return trial.error is None, math.inf
        return trial.error is None, value if mode == "min" else -value

    return [
        (
            trial,
            {
                "trial": trial.name,
                "state": trial.progress(),
                "settings": printable(settings_of(trial)),
                **{name: _text("{:.2f}", getattr(trial, key)) for name, key in columns.items()},
                "time": "-" if trial.seconds is None else clock(trial.seconds),
                "fingerprint": trial.fingerprint or "-",
                "error": printable_lines(trial.error or ""),
            },
        )
        for trial in sorted(report.trials, key=place)
    ]


def settings_of(trial: Trial) -> str:
    """The values drawn for a trial, as "method=kd optim.lr=0.03412"."""
    return " ".join(f"{k.removeprefix('run.')}={rounded(v)}" for k, v in trial.config.items())


def console_table(report: Report) -> Table:
    """The table for a terminal of 100 columns."""
    title = Text(printable(report.name))  # not a str, whose brackets would be read as markup
    title.append(f"\n{printable(conclusion(report))}")
    table = Table(
        title=title,
        title_justify="left",
        title_style="",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("", justify="right", no_wrap=True)
    # Words wrap, long names are cut in two; numbers stay whole.
    table.add_column("what", overflow="fold", min_width=15)
    table.add_column("network", overflow="fold", min_width=9)
    others = ["agreement %"] if report.labelled else [HEADINGS[name] for name in report.others]
    lines = rows(report)
    published = [PUBLISHED] if any(PUBLISHED in row for _, row in lines) else []
    columns = (report.heading, "n", *published, "best %", *others, "parameters", "images/s", "time")
    for name in columns:
        short = {"agreement %": "agree %", "parameters": "params", PUBLISHED: "publ. %"}
        short = short.get(name, name)
        table.add_column(short, justify="right", no_wrap=True)
    for group, row in lines:
        row |= {name: row[name].partition(" ")[0] for name in others}
        line = [row[name] for name in ("rank", "what", "network", *columns)]  # the rest has no room
        table.add_row(*map(Text, line), style=None if group.is_ranked() else "yellow")
    return table


def listed(names: Iterable[str]) -> str:
    """Distinct names as a sentence lists them: a, b and c."""
    *most, last = list(dict.fromkeys(names)) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def _text(form: str, value: Summary | float | None) -> str:
    """Text of a cell; for a single run, only the mean with which the form begins."""
    if value is None:
        return "-"
    single = isinstance(value, Summary) and value.std is None
    return (form.partition(" ")[0] if single else form).format(value)
