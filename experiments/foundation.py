"""Maps of a published teacher in the cache: bytes of a view, and what is left of their use.

    python experiments/foundation.py --images IMAGES --weights WEIGHTS
    python experiments/foundation.py --quick      # digits, a teacher of one epoch

The teacher's last maps of labelled images are cached once as float16, and shuffled. Each codec is
fitted to the first half of them, stores and restores all, and is judged by the vote of the 20
nearest neighbours: the first half is known, the other half asked. No student is trained. IMAGES is
a folder of Parquet files with an image and a label, WEIGHTS are timm's for tf_efficientnet_lite0.
"""

import tempfile
from typing import Any

import click
import torch

import raykd
from raykd.core import keyed_random
from raykd.core.types import Outputs
from raykd.data.dataset import open_images
from raykd.methods.feature_maps import pooled_to_grid
from raykd.outputs.codecs import PCA, Float16, Int8Channels, VectorCodec
from raykd.outputs.statistics import (
    STATISTICS,
    fitted,
    fitted_codecs,
    lost_share,
    read_vectors,
)
from raykd.storage.store import Store
from raykd.tasks.probes import knn_accuracy

CODECS: tuple[VectorCodec, ...] = (
    Float16(),
    Int8Channels(),
    PCA(rank=128, tolerance=1.0),
    PCA(rank=64, tolerance=1.0),
    PCA(rank=32, tolerance=1.0),
    PCA(rank=8, tolerance=1.0),
)
GRIDS = (None, 2)  # cells per side of the maps; None: as they are
HEAD = "| codec | grid | bytes of a view | variance lost % | 20-NN % of maps | of their means |"


@click.command()
@click.option("--images", help="Folder of Parquet files.")
@click.option("--weights", help="File of the teacher's weights.")
@click.option("--limit", default=2000, show_default=True, help="Images, half of them known.")
@click.option("--side", default=160, show_default=True, help="Pixels per side.")
@click.option("--store", "root", help="Folder of what is made; default: a temporary one.")
@click.option("--quick", is_flag=True, help="Digits and a network of random weights, in seconds.")
def main(
    images: str | None, weights: str | None, limit: int, side: int, root: str | None, quick: bool
) -> None:
    """Print a line of Markdown for each codec."""
    if not quick and not (images and weights):
        raise click.UsageError("name --images and --weights, or --quick")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(root or folder)
        try:
            student = _small() if quick else _student(weights, limit, side)
            maps, targets, classes = _maps(store, student, images)
            print(f"{HEAD}\n|---|---|---:|---:|---:|---:|")
            for grid in GRIDS:
                for codec in CODECS:
                    print(_line(codec, grid, maps, targets, classes), flush=True)
        except raykd.RaykdError as error:
            raise click.ClickException(str(error)) from error


def _student(weights: str | None, limit: int, side: int) -> raykd.Student:
    """A student whose cache has the teacher's last maps; it is never trained."""
    data: dict[str, Any] = {"name": "table", "resize": side, "limit": limit}
    half = [0.5, 0.5, 0.5]
    return raykd.Student(
        "timm/resnet10t",
        data=data,
        teacher={
            "model": "timm/tf_efficientnet_lite0",
            "weights": weights,
            "data": data | {"mean": half, "std": half},
        },
        task="features",
        method="dense_distillation",
        views=1,
    )


def _small() -> raykd.Student:
    """The same of a teacher of one epoch."""
    data, optim = {"name": "digits", "limit": 400}, {"epochs": 1, "batch": 32}
    teacher = {"model": "resnet8x4", "optim": optim, "data": data}
    return raykd.Student(
        "resnet8", data=data, teacher=teacher, task="features", method="dense_distillation", views=1
    )


def _maps(
    store: Store, student: raykd.Student, images: str | None
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The teacher's maps [N, K, H, W] from its cache, shuffled, labels int64 [N], their number."""
    experiment = raykd.Experiment(student, data=images) if images else raykd.Experiment(student)
    caches = raykd.cache(experiment, store, workers=0, quiet=True)
    (cache,) = (cache for cache in caches if cache.split == "train")
    table, data = cache.to_arrow()["map"].combine_chunks(), cache.recipe.data
    flat = torch.from_numpy(table.flatten().to_numpy().copy()).view(len(table), -1)
    vectors = read_vectors(cache.folder / STATISTICS, fitted_codecs(cache.recipe.plain()), None)
    maps = flat.unflatten(1, vectors.fits["map"]["shape"].tolist())
    # Files may be sorted by class.
    order = keyed_random.draw(0, torch.arange(len(maps)), 0, keyed_random.PROBE).argsort()
    targets = open_images(store, data)[0].targets
    return maps[order], targets[order], data.resolved().classes


def _line(
    codec: VectorCodec, grid: int | None, maps: torch.Tensor, targets: torch.Tensor, classes: int
) -> str:
    """The row of one codec."""
    half = len(maps) // 2
    known = Outputs(features={"last.map": maps[:half]})
    vectors = fitted([known], {"map": codec}, grid, half)
    columns = vectors.encode(Outputs(features={"last.map": maps}))
    (column,) = columns.values()
    read = vectors.decode(columns, torch.arange(len(maps)), Outputs()).map
    exact = pooled_to_grid(maps, grid).flatten(2)
    lost = lost_share(exact[half:], read[half:].flatten(2), exact[:half].mean((0, 2)))

    def accuracy(rows: torch.Tensor) -> float:
        known, asked = (rows[:half], targets[:half]), (rows[half:], targets[half:])
        return knn_accuracy(*known, *asked, classes).top1

    side = f"{read.shape[2]} x {read.shape[3]}"
    numbers = (
        f"{100 * lost:.3f} | {accuracy(read.flatten(1)):.2f} | {accuracy(read.mean((2, 3))):.2f}"
    )
    return f"| {codec.label} | {side} | {column[0].nbytes:,} | {numbers} |"


if __name__ == "__main__":
    main()
