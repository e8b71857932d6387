"""Speed of reading and writing a cache, and its size, relative to the minimum.

    python -m experiments.benchmarks.cache [--json PATH] [--pairs N] [--quick]

Goals are shown, not enforced; the exit status is 0.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from experiments.benchmarks.measure import (
    CLASSES,
    TESTED,
    Row,
    compared,
    cpu_seconds,
    interleaved,
    random_cache,
    random_images,
    recipe,
    show,
)
from raykd.core.types import Outputs, Shapes, Signal
from raykd.data.loading.sampler import epoch_order
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.outputs.codecs import Dense
from raykd.outputs.manifest import GRAIN, Manifest, Part, write_manifest, write_shard
from raykd.outputs.reader import OutputsCache
from raykd.storage import arrow
from raykd.storage.store import Store
from raykd.teachers.source import CachedTeacher
from raykd.training import calibrations
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import LocalHost
from raykd.training.inputs import views
from raykd.training.memory import keep_freed_memory
from raykd.training.runs import ShardMaker, local_host, train

TAKEN = 256  # rows of one look-up


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--pairs", default=7, show_default=True, help="Pairs of each measurement.")
@click.option("--quick", is_flag=True, help="Less work in each pair; the spread grows.")
def main(target: Path | None, pairs: int, quick: bool) -> None:
    """Print the table of ratios."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as every process of ours that reads or makes a cache
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count, classes, goal in ((50_000, 100, 0.9), (20_000, 1000, 0.85)):
            rows += _reading(folder / str(classes), count, classes, goal, pairs, quick)
        for precision in ("float32", "bfloat16"):
            rows.append(_precompute(folder, precision, 0.95, pairs, quick))
        rows.append(_calibrating(folder / "calibrating", pairs, quick))
    show("the cache", rows, target)


def _reading(
    folder: Path, count: int, classes: int, goal: float, pairs: int, quick: bool
) -> Iterator[Row]:
    """Look-ups of shuffled batches over numpy's, and the bytes of a row over float16's."""
    cache = random_cache(folder / "whole", count, classes)
    pieces = random_cache(folder / "pieces", count, classes, shards=4)
    order = epoch_order(0, 0, count)
    batches = order[: count // TAKEN * TAKEN].view(-1, TAKEN)
    (shard,) = (folder / "whole").glob("*.arrow")
    arrow.read(shard)["logits"].numpy().tofile(folder / "raw")
    raw = np.memmap(folder / "raw", np.float16, "r", shape=(count, classes))
    values = 50_000_000 if quick else 150_000_000  # looked up by one side: 0.1 or 0.3 s
    repeats = max(1, values // classes // count)

    def reading(look_up: Callable[[Tensor], Tensor]) -> Callable[[], float]:
        def work() -> None:
            for _ in range(repeats):
                for ids in batches:
                    look_up(ids)

        return lambda: cpu_seconds(work) / repeats / batches.numel()

    sides = {
        "ours": reading(lambda ids: cache.take(ids, 0).logits),
        "memmap": reading(lambda ids: torch.from_numpy(raw[ids.numpy()]).float()),
        "pieces": reading(lambda ids: pieces.take(ids, 0).logits),
    }
    seconds = interleaved(sides, 3 * pairs)  # they are short, and the neighbours' bursts are not
    base = ("numpy memmap, fancy index, .float()", seconds["memmap"])
    what = f"{count:,} x {classes} classes, shuffled batches of {TAKEN}"
    ours = ("OutputsCache.take", seconds["ours"])
    yield compared(f"read a cache of {what}", ours, base, goal, "row")
    ours = ("OutputsCache.take", seconds["pieces"])
    yield compared(f"the same in 4 shards, {classes} classes", ours, base, None, "row")
    size, bare = shard.stat().st_size / count, 2 * classes
    note = (
        f"{size:.3f} bytes per row over {bare}: 4 are the row's maximum, and the file's "
        f"{shard.stat().st_size - count * (bare + 4)} bytes of header are shared by {count:,} rows"
    )
    yield Row(f"bytes of a row, {classes} classes", size / bare, 1.02, "lower", note)


def _precompute(folder: Path, precision: str, goal: float, pairs: int, quick: bool) -> Row:
    """Forward, encode and write over the forward alone, on the same batches of views."""
    count = GRAIN * (1 if quick else 4)
    store, images = Store(folder / "store"), folder / "images"
    if not images.is_dir():
        random_images(images, 4 * GRAIN, TESTED)
    run = recipe(store, images, "resnet20", "resnet56", 4 * GRAIN)
    logits = run.outputs_at(0).model_copy(update={"precision": precision})
    if not store.has(logits.teacher):
        train(store, logits.teacher, local_host(store, logits.teacher))
    maker = ShardMaker(store, logits, torch.device("cpu"))
    rows = torch.arange(count)

    def bare() -> None:
        for batch in maker.views.runs(rows, GRAIN):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, precision == "bfloat16"):
                maker.teacher.network(batch.pixels)

    sides = {
        "ours": lambda: cpu_seconds(lambda: maker.make(Part(0, 0, count))) / count,
        "bare": lambda: cpu_seconds(bare) / count,
    }
    seconds = interleaved(sides, pairs)
    ours = (f"compute_shard, {count} rows in batches of {GRAIN}", seconds["ours"])
    base = ("draw, normalise and forward alone", seconds["bare"])
    name = f"precompute over the bare forward, resnet56 in {precision}"
    return compared(name, ours, base, goal, "row", more="waiting for the disk is not CPU time")


def _calibrating(folder: Path, pairs: int, quick: bool) -> Row:
    """The calibration of a cache's second student over that of its first."""
    count, width = (2048, 256) if quick else (calibrations.ROWS, 1280)
    store, images = Store(folder / "store"), folder / "images"
    random_images(images, count, TESTED)
    run = recipe(store, images, "resnet8", "resnet8", count)
    cached = run.outputs_at(0).model_copy(update={"embedding": True})
    place, generator = store.path(cached), torch.Generator().manual_seed(0)
    outputs = Outputs(
        torch.zeros(count, CLASSES), embedding=torch.randn(count, width, generator=generator)
    )
    signals = Signal.LOGITS | Signal.EMBEDDING
    place.mkdir(parents=True)
    shard = write_shard(place, Part(0, 0, count), Dense().encode(outputs, signals))
    write_manifest(place, Manifest(cached.plain(), "none", count, (shard,)))
    teacher = CachedTeacher(OutputsCache.open(place, cached.plain(), "none", [0]), signals)

    host = LocalHost(Checkpoints(folder), torch.device("cpu"))
    shown, _ = views(store, run, host)
    rows = epoch_order(run.data.seed, 0, count).sort().values
    sample = calibrations.Sample(teacher, shown, rows, 0)
    kept, method = calibrations.Calibrations(store, host), FeatureDistillation(distance="tangent")
    shapes = Shapes(CLASSES, width, {})

    def second() -> None:
        helpers = method.helpers(shapes, shapes)
        kept.set(method, helpers, sample)
        assert not method.needs_calibration(helpers)

    second()  # which was the first
    sides = {
        "second": lambda: cpu_seconds(second),
        "first": lambda: cpu_seconds(
            lambda: sample.calibrate(method, method.helpers(shapes, shapes))
        ),
    }
    seconds = interleaved(sides, pairs)
    ours = ("its file read", seconds["second"])
    base = ("computed", seconds["first"])
    name = f"PHI-S of {count:,} embeddings of {width}, for a cache's second student"
    (file,) = place.glob(f"{calibrations.BEGINNING}*")
    more = f"a file of {file.stat().st_size / 1e6:.3g} MB"
    return compared(name, ours, base, None, "student", more=more)


if __name__ == "__main__":
    main()
