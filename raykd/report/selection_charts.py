"""The pictures of what a group of students chose to be taught: a share of the samples, by spot.

The spots stand in the order of depth, as the metrics of an epoch list them.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from raykd.report.charts import Chart, curve, history
from raykd.report.svg import INK, Picture, draw, look
from raykd.report.types import Group, Report

_SHARE = "selected_"  # a key of an epoch's metrics: this and the name of a spot
_BY_CLASS = "selected_by_class"
_WIDTH, _HEIGHT = 12.4, 2.9  # inches: as wide as two other pictures, and of a row of panels


def selections(report: Report) -> Iterator[Chart]:
    """A picture for each group of students that chose, and whose runs have the same spots."""
    for group in report.foreground:
        shares = {spot: history(group, _SHARE + spot) for spot in _spots(group)}
        if not shares:
            continue
        maps = _maps(group, shares)
        note = "Percent of an epoch's training samples: mean over the seeds; the band spans them."
        if maps:
            note += " By class in the colours of the bar; a cell is empty where no sample was seen."
        title = f"Where {report.called(group)} is taught"
        yield Chart(title, _picture(title, shares, maps), note, wide=bool(maps))


def _spots(group: Group) -> tuple[str, ...]:
    """The spots of all runs in all epochs; none where these differ."""
    lines = [metrics for run in group.traced() for metrics in run.metrics]
    keys = [[key for key in line if key.startswith(_SHARE) and key != _BY_CLASS] for line in lines]
    spots = {tuple(key.removeprefix(_SHARE) for key in line) for line in keys}
    return spots.pop() if len(spots) == 1 else ()


def _maps(group: Group, shares: Mapping[str, np.ndarray]) -> dict[str, np.ma.MaskedArray]:
    """The share of each class [epochs, classes] by spot; masked where no run saw a sample.

    The mean of those runs that did. Empty where an epoch lacks it, or has other classes.
    """
    count = _epochs(shares)
    lines = [[metrics.get(_BY_CLASS, {}) for metrics in r.metrics[:count]] for r in group.traced()]
    maps = {}
    for spot in shares:
        rows = [[line.get(spot, []) for line in run] for run in lines]
        if len({len(classes) for run in rows for classes in run}) != 1:
            return {}
        table = np.array(rows, float)  # None becomes NaN
        maps[spot] = np.ma.masked_invalid(table).mean(0)
    return maps if all(table.size for table in maps.values()) else {}


def _epochs(shares: Mapping[str, np.ndarray]) -> int:
    """Number of epochs that all runs have."""
    return next(iter(shares.values())).shape[1]


def _picture(
    title: str, shares: Mapping[str, np.ndarray], maps: Mapping[str, np.ma.MaskedArray]
) -> Picture:
    """A line per spot for all classes together, then a map of the classes for each spot."""

    def paint(first: Axes, *others: Axes) -> None:
        for number, (spot, table) in enumerate(shares.items()):
            curve(first, table, look(number), spot)
        # As wide as the cells of the maps; a line at 0 or 100 keeps its whole width.
        ends = {"xlim": (0.5, _epochs(shares) + 0.5), "ylim": (-3, 103)}
        first.set(**ends, xlabel="epoch", ylabel="selected, %")
        # Above the panel, where no line can be.
        position = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderpad": 0.2}
        columns = -(-len(shares) // -(-len(shares) // 3))
        first.legend(ncols=columns, frameon=False, **position)
        images = [
            _map(axes, spot, table)
            for axes, (spot, table) in zip(others, maps.items(), strict=True)
        ]
        if images:
            bar = first.figure.colorbar(
                images[0], ax=[first, *others], label="selected, %", pad=0.01, aspect=30
            )
            bar.outline.set_visible(False)

    description = ", ".join(f"{spot} {table[:, -1].mean():.2f}" for spot, table in shares.items())
    last = {spot: table[-1].compressed() for spot, table in maps.items()}
    ranges = [f"{spot} {v.min():.2f} to {v.max():.2f}" for spot, v in last.items() if len(v)]
    label = f"{title}, in percent of the training samples by epoch. At the end: {description}."
    if ranges:
        label += f" By class at the end: {', '.join(ranges)}."
    panels = 1 + len(maps)
    inches = (_WIDTH, _HEIGHT * -(-panels // 3)) if maps else (6, 3.6)
    return draw(paint, label, inches, panels)


def _map(axes: Axes, spot: str, table: np.ma.MaskedArray) -> AxesImage:
    """Draw shares [epochs, classes] as an image, the epochs to the right and class 0 on top."""
    epochs, classes = table.shape
    image = axes.imshow(
        table.T,
        cmap="cividis",  # even steps to any eye, colour-blind or not
        vmin=0,
        vmax=100,
        aspect="auto",
        interpolation="none",  # one pixel a cell, which the page enlarges
        extent=(0.5, epochs + 0.5, classes - 0.5, -0.5),
    )
    axes.set(title=spot, xlabel="epoch", ylabel="class")
    axes.grid(False)
    axes.spines[:].set(visible=True, color=INK, alpha=0.2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return image
