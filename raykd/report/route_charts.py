"""The pictures of routes: what searches measured and chose, and which anchor teaches when."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from raykd.recipes import StudentRun
from raykd.report.charts import Chart
from raykd.report.svg import INK, PAPER, Picture, draw, on
from raykd.report.types import Report, RouteSearch

Leg = tuple[int, int, int]  # from a student epoch to another one, not included; the anchor
_NAME = 64  # characters of a row's name, at most
_NARROW, _NUMBERED = 10, 30  # checkpoints whose numbers have room in a picture, and in a wide one
_MAP = mpl.colormaps["cividis"]  # perceptually uniform, also for colour-blind readers and in grey


def route_charts(report: Report) -> Iterator[Chart]:
    """Charts of searches' choices, then of the epochs of each anchor; empty without routes."""
    if report.searches:
        note = "Dots are the teacher's saved epochs, squares the anchors; a ring is to come next."
        yield Chart("Anchors that searches chose", _chosen(report.searches), note)
    for search in report.searches:
        if search.decisions:
            yield _hardness(search)
    routes = [*_routes(report)]
    if routes:
        note = "Numbers are the teacher's epochs; the later, the lighter."
        yield Chart("The anchor of every student epoch", _timeline(routes), note)


def legs(run: StudentRun) -> list[Leg]:
    """Intervals of a student's epochs, over all stages, each with the anchor that supervises it."""
    anchors = [
        stage.anchor_at(epoch) for stage in run.stages() for epoch in range(stage.optim.epochs)
    ]
    turns = [epoch for epoch in range(1, len(anchors)) if anchors[epoch] != anchors[epoch - 1]]
    ends = pairwise([0, *turns, len(anchors)])
    return [(start, stop, anchors[start]) for start, stop in ends]


def ratios(search: RouteSearch) -> np.ndarray:
    """r of every checkpoint (columns) after every stage (rows); NaN for passed ones."""
    return np.array(
        [
            [one.ratios.get(anchor, np.nan) for anchor in search.candidates]
            for one in search.decisions
        ]
    )


def _chosen(searches: Sequence[RouteSearch]) -> Picture:
    """The anchors of every search on the axis of the teacher's epochs."""

    def paint(axes: Axes) -> None:
        for row, search in enumerate(searches):
            visited = search.anchors if search.complete else search.anchors[:-1]
            marks: list[tuple[Sequence[int], dict[str, Any]]] = [
                (search.candidates, {"marker": "o", "ms": 3}),
                (visited, {"marker": "s", "ms": 8}),
            ]
            if not search.complete:
                ring = {"marker": "o", "ms": 8, "mfc": "none", "mew": 1.5}
                marks.append((search.anchors[-1:], ring))
            for epochs, style in marks:
                axes.plot(epochs, [-row] * len(epochs), color=INK, ls="", **style)
            _named(axes, search.label, -row)
        _rows(axes, len(searches))
        axes.set_xlabel("teacher's epoch")

    description = "; ".join(
        f"{one.label} {', '.join(map(str, one.anchors))}" + " so far" * (not one.complete)
        for one in searches
    )
    return draw(
        paint, f"Anchors by the teacher's epoch: {description}.", (6, 0.8 + 0.5 * len(searches))
    )


def _hardness(search: RouteSearch) -> Chart:
    """The matrix r of a search: a row for each stage, a column for each checkpoint."""
    table, candidates = ratios(search), search.candidates
    threshold, wide = search.recipe["threshold"], len(candidates) > _NARROW
    stages, columns = table.shape
    finite = np.where(np.isinf(table), threshold * 4, table)

    def paint(axes: Axes) -> None:
        # Each factor of two is a step; what is beyond four times the threshold looks alike.
        shade = np.log2(np.clip(np.ma.masked_invalid(finite), threshold / 4, threshold * 4))
        ends = {"vmin": np.log2(threshold / 4), "vmax": np.log2(threshold * 4)}
        image = axes.imshow(shade, cmap=_MAP, aspect="auto", interpolation="none", **ends)
        colours = image.to_rgba(shade)
        for row, one in enumerate(search.decisions):
            corner = (candidates.index(one.next) - 0.5, row - 0.5)
            for colour, width in ((PAPER, 5), (INK, 2.5)):
                frame = Rectangle(corner, 1, 1, fill=False, ec=colour, lw=width, clip_on=False)
                axes.add_patch(frame)
            for column in range(columns if columns <= _NUMBERED else 0):
                value = table[row, column]
                if not np.isnan(value):
                    _number(axes, column, row, _short(value), colours[row, column])
        axes.grid(False)
        step = 1 + (columns - 1) // _NUMBERED
        axes.set_xticks(range(0, columns, step), [str(one) for one in candidates[::step]])
        axes.set_yticks(range(stages), [str(one.anchor) for one in search.decisions])
        axes.set(xlabel="checkpoint: the teacher's epoch", ylabel="stage's anchor")

    rows = "; ".join(
        f"after {one.anchor} "
        + ", ".join(f"{anchor}: {_short(r)}" for anchor, r in sorted(one.ratios.items()))
        + f", next {one.next}"
        for one in search.decisions
    )
    label = f"Search {search.fingerprint}, threshold {threshold}. Relative hardness r: {rows}."
    most = search.recipe["at_most"]
    note = (
        f"How much farther a checkpoint is from the stage's student than its own anchor. Framed: "
        f"the last one with r up to {threshold}, which comes next, or the next one where there is "
        f"none{f'; at most {most} anchors' if most else ''}. Lighter is harder."
    )
    inches = (12.4 if wide else 6, max(0.9 + 0.36 * stages, 1.7))
    title = f"Relative hardness r: {search.label}, threshold {threshold}"
    return Chart(title, draw(paint, label, inches), note, wide)


def _routes(report: Report) -> Iterator[tuple[str, list[Leg]]]:
    """The students that more than one anchor teaches; seeds apart where their routes differ."""
    for group in report.students:
        if not any(run.recipe.get("route") or run.recipe.get("after") for run in group.runs):
            continue
        seeds: dict[tuple[Leg, ...], int] = {}
        for run in group.runs:
            if run.anchors is None:
                student = StudentRun.read(run.recipe)
                assert isinstance(student, StudentRun)
                seeds.setdefault(tuple(legs(student)), run.seed)
        for route, seed in seeds.items():
            if len(route) > 1:
                which = f" seed {seed}" if len(seeds) > 1 else ""
                yield report.called(group) + which, [*route]


def _timeline(routes: Sequence[tuple[str, list[Leg]]]) -> Picture:
    """A bar for each student, in the colours of its anchors."""
    last = max(anchor for _, route in routes for *_, anchor in route)
    longest = max(route[-1][1] for _, route in routes)

    def paint(axes: Axes) -> None:
        for row, (name, route) in enumerate(routes):
            for start, stop, anchor in route:
                colour = _MAP(0.15 + 0.85 * anchor / max(last, 1))
                axes.barh(-row, stop - start, 0.42, start, color=colour, ec=PAPER, lw=1)
                if (stop - start) / longest > 0.05:
                    _number(axes, (start + stop) / 2, -row, str(anchor), colour)
            _named(axes, name, -row)
        _rows(axes, len(routes))
        axes.set(xlim=(0, longest), xlabel="student's epoch")

    description = "; ".join(
        f"{name} " + ", ".join(f"{anchor} to epoch {stop}" for _, stop, anchor in route)
        for name, route in routes
    )
    return draw(
        paint, f"Anchors by the student's epoch: {description}.", (6, 0.8 + 0.6 * len(routes))
    )


def _rows(axes: Axes, count: int) -> None:
    """Room for rows at 0, -1, ... with names above them."""
    axes.set(ylim=(0.4 - count, 0.75), yticks=[])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(False)


def _named(axes: Axes, name: str, row: float) -> None:
    """A row's name, above it and from the left edge."""
    place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    name = name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."
    axes.annotate(name, (0, row + 0.28), (0, 0), va="bottom", **place)


def _number(axes: Axes, x: float, y: float, text: str, behind: Any) -> None:
    """A number in the middle of a coloured cell."""
    axes.text(x, y, text, ha="center", va="center", color=on(behind))


def _short(value: float) -> str:
    """A ratio in four places at most."""
    return "inf" if np.isinf(value) else f"{value:.2f}" if value < 100 else f"{value:.0f}"
