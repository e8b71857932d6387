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
from raykd.data.loading.sampler import epoch_order
from raykd.outputs.manifest import GRAIN, Part
from raykd.storage import arrow
from raykd.storage.store import Store
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


if __name__ == "__main__":
    main()
