"""The pictures of a report: learning curves, and accuracy against what a network costs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import EngFormatter, Formatter, LogLocator, MaxNLocator, NullLocator

from raykd.report.svg import INK, Picture, draw, look
from raykd.report.types import Group, Report
from raykd.tasks.base import HEADINGS


@dataclass(frozen=True)
class Chart:
    """A picture with its words."""

    title: str
    picture: Picture | None  # None where there are no numbers yet
    note: str
    wide: bool = False  # takes the whole width of a page


def charts(report: Report) -> Iterator[Chart]:
    """The pictures that all groups of a report share."""
    late = "The first epochs may lie below the picture."
    metrics = (
        *(
            (
                name,
                f"{_capital(HEADINGS[name].removesuffix(' %'))} on the test images, %",
                f"Mean over the seeds; the band spans them. {late}",
            )
            for name in (report.metric, *report.others)
        ),
        ("loss", "Training loss", "Methods sum losses of their own: compare shapes, not heights."),
        ("agreement", "Agreement with the teacher, %", f"Test images answered as it does. {late}"),
    )
    for key, title, note in metrics:
        yield Chart(title, _curves(report, key, title), note)
    spread = "Mean and sample standard deviation. The line joins what nothing cheaper surpasses."
    count = "A multiply-add is two, and only convolutions and matrix products are counted."
    machines = len({name for group in report.groups() for name in group.hardware})
    where = "on the machine that trained it" + (", of which there were several" * (machines > 1))
    prices = (
        ("parameters", "number of parameters", "Students of one size stand side by side."),
        ("flops", "FLOPs of one image", count),
        ("latency_ms", "milliseconds of one image", f"Median of a forward alone, {where}."),
    )
    for key, words, note in prices:
        yield Chart(
            f"{_capital(report.measure)} by {words}, %",
            _front(report, key, words),
            f"{spread} {note}",
        )


def _capital(text: str) -> str:
    """The text with a capital letter first, where it has none."""
    return text[:1].upper() + text[1:] if text.islower() else text


def sample(number: int) -> Picture:
    """The line and marker of a group of students, for a legend."""

    def paint(axes: Axes) -> None:
        axes.set_axis_off()
        axes.plot([0, 1, 2], [0, 0, 0], markevery=[1], **look(number))

    return draw(paint, f"sample {number}", (0.6, 0.16))


def curve(axes: Axes, table: np.ndarray, style: dict[str, Any], name: str = "") -> None:
    """Draw a metric [runs, epochs] by epoch: the mean of its runs, in a band from least to most."""
    count = table.shape[1]
    step = 1 + count // 7
    epochs, every = np.arange(1, count + 1), ((count - 1) % step, step)
    axes.plot(epochs, table.mean(0), markevery=every, label=name, **style)
    axes.fill_between(epochs, table.min(0), table.max(0), color=style["color"], alpha=0.16, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def history(group: Group, key: str) -> np.ndarray:
    """A metric [runs, epochs] of the runs that curves are of; NaN where there is no number."""
    runs = group.traced()
    count = min((len(run.metrics) for run in runs), default=0)
    rows = [[metrics.get(key, np.nan) for metrics in run.metrics[:count]] for run in runs]
    table = np.array(rows, float).reshape(len(runs), count)
    return np.where(np.isfinite(table), table, np.nan)


def _curves(report: Report, key: str, title: str) -> Picture | None:
    """A metric by epoch: a line per group, the mean of its seeds, in a band from least to most."""
    tables = [(look(i), group, history(group, key)) for i, group in enumerate(report.foreground)]
    tables = [entry for entry in tables if np.isfinite(entry[2]).all(0).any()]
    if not tables:
        return None
    teachers = report.teachers if key == report.metric else ()
    levels = [(report.called(group), group.score.mean) for group in teachers if group.score]

    behind = [history(group, key) for group in report.background]

    def paint(axes: Axes) -> None:
        for table in behind:
            for row in table:
                axes.plot(np.arange(1, len(row) + 1), row, color=INK, lw=0.8, alpha=0.25, zorder=1)
        for style, _, table in tables:
            curve(axes, table, style)
        for name, value in levels:
            axes.axhline(value, color=INK, lw=1, ls="--")
            anchor = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
            axes.annotate(name, (0, value), (0, 4), **anchor)
        axes.set_xlabel("epoch")
        if key != "loss":
            # What counts is the difference at the end, which the first epochs would flatten.
            late = np.concatenate([table[:, table.shape[1] // 2 :].ravel() for *_, table in tables])
            late = np.concatenate([late, *(table[:, -1] for table in behind if table.size)])
            shown = [*late[np.isfinite(late)], *(value for _, value in levels)] or [0.0, 100.0]
            room = 0.08 * (max(shown) - min(shown)) or 1.0
            axes.set_ylim(min(shown) - room, max(shown) + room)
        elif all(np.nanmin(table) > 0 for *_, table in tables):
            axes.set_yscale("log")
            log_axis(axes.yaxis, (1, 3), "{x:g}")

    ends = [(report.called(group), table[:, -1].mean()) for _, group, table in tables]
    description = ", ".join(f"{name} {value:.2f}" for name, value in (*ends, *levels))
    return draw(paint, f"{title}, by epoch. At the end: {description}.")


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Pareto front: indices of the (price, worth) that no other surpasses, cheapest first."""
    order = sorted(range(len(points)), key=lambda number: (points[number][0], -points[number][1]))
    indices: list[int] = []
    for number in order:
        if not indices or points[number][1] > points[indices[-1]][1]:
            indices.append(number)
    return indices


def _front(report: Report, key: str, words: str) -> Picture | None:
    """Accuracy against a price: a mark per group, teachers in the colour of text, and the front."""
    teacher: dict[str, Any] = {"color": INK, "marker": "D"}
    groups = [(look(i), group) for i, group in enumerate(report.foreground)]
    groups += [(teacher, group) for group in report.teachers]
    points = [(style, g, getattr(g, key), g.score) for style, g in groups if getattr(g, key)]
    points = [(style, group, price, score) for style, group, price, score in points if score]
    if not points:
        return None
    prices = [price for *_, price, _ in points]
    ends = min(prices) / 1.5, max(prices) * 1.5
    best = front([(price, score.mean) for *_, price, score in points])

    def paint(axes: Axes) -> None:
        axes.set(xscale="log", xlim=ends)
        log_axis(axes.xaxis, (1, 2, 5), "{x:g}" if key == "latency_ms" else EngFormatter())
        ranks: Counter[float] = Counter()  # values so far, among the groups of one price
        positions: list[tuple[float, float]] = []
        for style, group, price, score in points:
            count = prices.count(price)
            shift = min(0.035, 0.15 / count) * (ranks[price] - (count - 1) / 2)
            ranks[price] += 1
            position = price * (ends[1] / ends[0]) ** shift, score.mean
            positions.append(position)
            mark: dict[str, Any] = style | {"ls": ""}
            axes.errorbar(*position, score.std, **mark)
            if style is teacher:
                # To the left, where no step of the front is; in points.
                offset: dict[str, Any] = {"xytext": (-7, -3), "textcoords": "offset points"}
                axes.annotate(group.label, position, ha="right", **offset)
        xs, ys = zip(*(positions[number] for number in best), strict=True)
        steps = (*xs, ends[1]), (*ys, ys[-1])
        axes.plot(*steps, color=INK, lw=1, alpha=0.6, drawstyle="steps-post", zorder=1)

    description = "; ".join(
        f"{report.called(group)} {score.mean:.2f} with {round(price, 3):,}"
        for _, group, price, score in points
    )
    winners = ", ".join(report.called(points[number][1]) for number in best)
    return draw(paint, f"Top-1 in percent by {words}: {description}. On the front: {winners}.")


def log_axis(axis: Axis, multiples: tuple[float, ...], form: str | Formatter) -> None:
    """Mark the given multiples of powers of ten on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=multiples))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(form)
