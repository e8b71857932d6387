"""Shared parts of the benchmark scripts: interleaved timing, tables of ratios, and subjects.

A number is a ratio of two things measured in turns, in one process with one torch thread, as
CPU time; each is the median over pairs. Absolute speeds are of the machine at hand, so they
stand in the notes only. What has to fit on disk lies in a temporary folder.

Shapes: N rows, C classes.
"""

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from raykd import models
from raykd.api.experiment import Experiment
from raykd.api.work import prepared, run
from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.core.types import Outputs, Signal
from raykd.models import Staged
from raykd.outputs.codecs import Dense
from raykd.outputs.manifest import Manifest, Part, split, write_manifest, write_shard
from raykd.outputs.reader import OutputsCache
from raykd.recipes import StudentRun
from raykd.storage.store import MARKER, Store, read_json
from raykd.training.checkpointing import RESULT
from raykd.training.weights import save_weights

SIZE = 32  # pixels, of images like CIFAR's
CLASSES = 100
TESTED = 16  # test images: evaluation is not what is measured
_GRID = """\
run:
  model: resnet8
  data: {name: digits, limit: 64}
  teacher: {model: resnet8, optim: {epochs: 1, batch: 32}}
  optim: {epochs: 1, batch: 32}
grid:
  run.seed: [%s]
scale: {workers: 0, grid_limit: 100000}
"""
Better = Literal["higher", "lower"]
Side = Callable[[], float]  # CPU seconds of one unit of work (a row, a step, a student)


@dataclass(frozen=True)
class Row:
    """One measured ratio; `goal` None: for information."""

    name: str
    ratio: float
    goal: float | None
    better: Better
    note: str

    def reached(self) -> bool | None:
        """True where the ratio reaches the goal; None without a goal."""
        if self.goal is None:
            return None
        return self.ratio >= self.goal if self.better == "higher" else self.ratio <= self.goal


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads, in one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def spent(words: Sequence[str]) -> tuple[float, float]:
    """CPU seconds and the most memory, in MB, of a Python process.

    Raises `CalledProcessError` for a status above 2, which is that of a user's mistake.
    """
    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 2):
        raise subprocess.CalledProcessError(process.returncode, words)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


def grid_file(path: Path, students: int) -> Path:
    """The file of an experiment of so many tiny students, which is written."""
    path.write_text(_GRID % ", ".join(map(str, range(students))))
    return path


def finish_grid(experiment: Experiment, place: Path) -> None:
    """Train the first student of a grid, and link its files under the recipes of the others."""
    store = Store(place)
    resolved, _, _ = prepared(experiment, store, quiet=True)
    first, *others = resolved.students()
    run(first, store, workers=0, quiet=True)
    done = store.path(first)
    result = read_json(done / RESULT)
    for student in others:
        folder = store.path(student)
        shutil.copytree(done, folder, copy_function=os.link, ignore=lambda *_: [MARKER])
        store.write_json(folder / RESULT, result)
        store.finish(student)


def interleaved(sides: Mapping[str, Side], pairs: int) -> dict[str, list[float]]:
    """Values that each side returned in each of `pairs` rounds, after one warm-up round.

    Every second round runs backwards, so that what grows with time favours no side.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(pairs + 1):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            value = sides[name]()
            if number:
                seconds[name].append(value)
    return seconds


def compared(
    name: str,
    ours: tuple[str, Sequence[float]],
    base: tuple[str, Sequence[float]],
    goal: float | None,
    unit: str,
    better: Better = "higher",
    more: str = "",
) -> Row:
    """The median ratio of two sides' CPU seconds per `unit`, pair by pair.

    `higher` compares rates, so it is base's seconds over ours; `lower` compares costs.
    """
    pairs = list(zip(ours[1], base[1], strict=True))
    ratios = [b / a if better == "higher" else a / b for a, b in pairs]
    note = (
        f"{ours[0]}: {_each(ours[1], unit)}; over {base[0]}: {_each(base[1], unit)}; "
        f"{len(ratios)} pairs, {min(ratios):.3f} to {max(ratios):.3f}"
    )
    note += f"; {more}" if more else ""
    return Row(name, statistics.median(ratios), goal, better, note)


def show(title: str, rows: Sequence[Row], target: Path | None) -> None:
    """Print the table, and write the rows as JSON where there is a `target`."""
    table = Table(title=title, show_lines=True)
    table.add_column("what", max_width=44)
    table.add_column("ratio", justify="right")
    table.add_column("goal", justify="right")
    table.add_column()
    table.add_column("measured", overflow="fold")
    verdict = {True: "[green]reached", False: "[red]not reached", None: "[dim]no goal"}
    for row in rows:
        sign = ">=" if row.better == "higher" else "<="
        goal = "" if row.goal is None else f"{sign} {row.goal:g}"
        table.add_row(row.name, f"{row.ratio:.4f}", goal, verdict[row.reached()], row.note)
    put(table)
    if target is not None:
        target.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def put(table: Table) -> None:
    """Print a table."""
    console = Console()
    # Without a terminal, rich assumes 80 columns, too few for the notes.
    (console if console.is_terminal else Console(width=160)).print(table)


def random_cache(folder: Path, rows: int, classes: int, shards: int = 1) -> OutputsCache:
    """Cache of random logits for one view, written and opened by raykd."""
    folder.mkdir(parents=True)
    logits = 5 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(0))
    written = tuple(
        write_shard(
            folder, part, Dense().encode(Outputs(logits[part.start : part.stop]), Signal.LOGITS)
        )
        for part in split([Part(0, 0, rows)], -(-rows // shards))
    )
    recipe = {"random": [rows, classes]}
    write_manifest(folder, Manifest(recipe, "none", rows, written))
    return OutputsCache.open(folder, recipe, "none", [0])


def random_images(folder: Path, train: int, test: int) -> None:
    """Image tables of uniform noise, read like a user's."""
    generator = np.random.default_rng(0)
    for name, rows in (("train", train), ("test", test)):
        pixels = generator.integers(0, 256, (rows, SIZE, SIZE, 3), dtype=np.uint8)
        labels = np.arange(rows) % CLASSES
        columns = {"image": [_encoded(image) for image in pixels], "label": labels}
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")


def random_teacher(path: Path, model: str) -> Path:
    """The weights file of an `untrained` network."""
    save_weights(path, untrained(model))
    return path


def untrained(model: str) -> Staged:
    """A network of random weights whose batch norms fit its activations."""
    torch.manual_seed(0)
    network = models.build(model, CLASSES)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of one batch, whole
    with torch.no_grad():
        network.train()(torch.randn(64, 3, SIZE, SIZE))
    return network


def recipe(
    store: Store, images: Path, student: str, teacher: str, rows: int, optim: str = "epochs: 1"
) -> StudentRun:
    """A student of cached KD on `rows` of the images in `images`, as an experiment file's."""
    weights = images.parent / f"{teacher}.safetensors"
    if not weights.is_file():
        random_teacher(weights, teacher)
    text = f"""
    data: {{path: {images}}}
    run:
      model: {student}
      data: {{name: table, limit: {rows}, augment: {{pad: 4, flip: true}}}}
      teacher: {{model: {teacher}, weights: {weights}}}
      method: kd
      optim: {{{optim}, batch: 64}}
      views: 1
    """
    (run,) = resolve(parse(text, "bench"), store).runs
    assert isinstance(run, StudentRun)
    return run


def _each(seconds: Sequence[float], unit: str) -> str:
    """The median as CPU time of a unit, and as a rate where that reads better."""
    value = statistics.median(seconds)
    for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {name} per {unit}"
    return f"{1e-6 / value:.3g} M {unit}s per second"


def _encoded(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "bmp")  # not compressed: noise would not shrink
    return data.getvalue()
