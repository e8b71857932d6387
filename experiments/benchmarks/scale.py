"""Scale of the driver: files, finished students, shards and grids, each at N/4 and at N.

    python -m experiments.benchmarks.scale [--part PART ...] [--files N] [--students N]

For each: how the CPU time beyond starting grows, as the exponent of N between the two sizes (1 is
proportional), with the times themselves and, of whole processes, the most memory. Files are links
to a few images, finished students links to one that was trained, so that a folder of a million
files takes little room; all of it lies in a temporary folder.
"""

import atexit
import gc
import io
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image

from experiments.benchmarks.measure import (
    Row,
    cpu_seconds,
    finish_grid,
    grid_file,
    show,
    spent,
)
from raykd.api.experiment import load
from raykd.api.work import prepared
from raykd.outputs.manifest import GRAIN, Manifest, Part, Shard, write_manifest
from raykd.outputs.reader import OutputsCache
from raykd.planning.plan import plan
from raykd.storage.store import Store

_CLASSES = _LEAST = 10  # what takes as long for so few is starting
_LINKS = 30_000  # of one file: file systems bound them
_READ = """
import sys
from raykd.data.dataset import read
from raykd.data.recipe import Data
from raykd.storage.store import Store
data = Data(name="folder", stream={"size": 32, "resize": 32})
read(Store(sys.argv[1]), data, sys.argv[2])
"""
_RAYKD = "from raykd.cli import main; main()"
Measure = Callable[[int, Path], dict[str, tuple[float, float | None]]]  # CPU s, MB at most


@click.command()
@click.option("--part", "parts", multiple=True, help="files, students, shards, grid; all of them.")
@click.option("--files", default=200_000, show_default=True, help="1,000,000 at full size.")
@click.option("--students", default=2_000, show_default=True, help="10,000 at full size.")
@click.option("--shards", default=20_000, show_default=True)
@click.option("--grid", default=5_000, show_default=True)
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--quick", is_flag=True, help="Little of each: the same code in seconds.")
def main(
    parts: tuple[str, ...],
    files: int,
    students: int,
    shards: int,
    grid: int,
    target: Path | None,
    quick: bool,
) -> None:
    """Print the table."""
    if quick:
        files, students, shards, grid = 400, 80, 400, 80
    sizes: dict[str, tuple[int, Measure]] = {
        "files": (files, _files),
        "students": (students, _students),
        "shards": (shards, _shards),
        "grid": (grid, _grid),
    }
    rows: list[Row] = []
    atexit.register(gc.unfreeze)
    gc.freeze()  # as commands do once they have imported all
    for part in parts or tuple(sizes):
        size, measure = sizes[part]
        rows += _grown(part, size, measure)
    show("scale of the driver: exponent of N", rows, target)


def _grown(part: str, size: int, measure: Measure) -> list[Row]:
    """A row for each thing that is measured at a quarter of a size, and at all of it."""
    sides = []
    for number in (_LEAST, size // 4, size):
        with tempfile.TemporaryDirectory() as folder:
            sides.append(measure(number, Path(folder)))
    rows = []
    for name, (start, _) in sides[0].items():
        (small, before), (large, memory) = (side[name] for side in sides[1:])
        small, large = max(small - start, 1e-6), max(large - start, 1e-6)
        note = f"{small:.3g} CPU s of {size // 4:,}, {large:.3g} of {size:,} {part}"
        if memory is not None:
            note += f"; at most {before:.0f} and {memory:.0f} MB"
        rows.append(Row(name, math.log(large / small, 4), 1.2, "lower", note))
    return rows


def _files(count: int, folder: Path) -> dict[str, tuple[float, float | None]]:
    """Images in a folder per class: identified, and found again unchanged."""
    place, store = folder / "images", folder / "store"
    source, pixels = folder / "one.png", np.zeros((8, 8, 3), dtype=np.uint8)
    for number in range(count):
        if number % _LINKS == 0:
            data = io.BytesIO()
            pixels[0, 0] = number // _LINKS
            Image.fromarray(pixels).save(data, "png")
            source.unlink(missing_ok=True)
            source.write_bytes(data.getvalue())
        inside = place / f"class-{number % _CLASSES:03d}"
        if number < _CLASSES:
            inside.mkdir(parents=True)
        os.link(source, inside / f"{number:07d}.png")
    names = "files read and identified", "files found again unchanged"
    return {name: spent(["-c", _READ, str(store), str(place)]) for name in names}


def _students(count: int, folder: Path) -> dict[str, tuple[float, float | None]]:
    """Commands over a store of finished students."""
    file, store = grid_file(folder / "grid.yaml", count), folder / "store"
    finish_grid(load(file), store)
    commands = (["show", "students"], ["verify"], ["report", str(file)], ["run", str(file)])
    return {
        f"raykd {words[0]}": spent(["-c", _RAYKD, *words, f"--store={store}"]) for words in commands
    }


def _shards(count: int, folder: Path) -> dict[str, tuple[float, float | None]]:
    """A cache opened: its manifest read, checked, and its views counted."""
    recipe, views = {"random": [count]}, max(1, count // 10)
    shards = tuple(
        Shard(Part(number % views, start := number // views * GRAIN, start + GRAIN), 1, "0" * 24)
        for number in range(count)
    )
    write_manifest(folder, Manifest(recipe, "none", count // views * GRAIN, shards))
    opened = [
        cpu_seconds(lambda: OutputsCache.open(folder, recipe, "none", range(views)))
        for _ in range(5)
    ]
    return {"a cache opened": (min(opened), None)}


def _grid(count: int, folder: Path) -> dict[str, tuple[float, float | None]]:
    """A grid read from its file, resolved, and planned."""
    file, store = grid_file(folder / "grid.yaml", count), Store(folder / "store")
    prepared(load(grid_file(folder / "one.yaml", 1)), store, quiet=True)  # images, imports
    read = cpu_seconds(lambda: load(file))
    experiment = load(file)
    students = prepared(experiment, store, quiet=True)[0].students()
    return {
        "a grid's file read": (read, None),
        "resolved": (cpu_seconds(lambda: prepared(experiment, store, quiet=True)), None),
        "planned": (cpu_seconds(lambda: plan(students)), None),
    }


if __name__ == "__main__":
    main()
