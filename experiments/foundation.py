"""Students of published teachers from images without labels, and what codecs keep of the maps.

    python experiments/foundation.py --images IMAGES --weights LITE0 [--weights LITE1 ...]
    python experiments/foundation.py --part students --part speed ...     # all by default
    python experiments/foundation.py --quick      # digits, teachers of one epoch

IMAGES is a folder of train.parquet and val.parquet with an image and a label; labels judge, and
nothing learns from them. The weights are timm's for tf_efficientnet_lite0, lite1 and lite2, in this
order.

students  two students by LightlyTrain's versions 1 to 3, by cosine and by relations, all from the
          caches of the first teacher: 20 nearest neighbours and linear probe
exact     the rows of those caches against the live teacher's answers, number by number
speed     CPU time of a student from the cache and with the live teacher, and of the cache
codecs    the teacher's last maps by each codec: bytes, variance lost, and nearest neighbours (half
          of the images are known, the others asked)
subsets   a student of every subset of the teachers, whose forwards are counted
"""

import csv
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import torch

import raykd
from raykd.core import keyed_random
from raykd.core.types import Outputs
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
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
from raykd.training.inputs import live_teacher

TEACHERS = tuple(f"timm/tf_efficientnet_lite{number}" for number in range(3))
STUDENTS = ("timm/mobilenetv3_small_050", "timm/resnet10t")
V1 = {"name": "feature_distillation", "distance": "queue"}
METHODS: Mapping[str, Any] = {
    "v1": V1,
    "v2": {"name": "dense_distillation", "distance": "mse"},
    "v3": {"combine": [V1, {"name": "dense_distillation", "distance": "gram_kl"}]},
    "cosine": "feature_distillation",
    "rkd": "relational_kd",
}
OPTIM = {"name": "adamw", "lr": 0.002, "weight_decay": 0.05, "batch": 32, "schedule": "cosine"}
PARTS = ("students", "exact", "speed", "codecs", "subsets")
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
CHECKED = 256  # rows that are compared with the live teacher's


@dataclass(frozen=True)
class Setting:
    """The images, networks and schedule of all parts."""

    store: Store
    images: str | None
    weights: tuple[str, ...]
    models: tuple[str, ...]
    side: int
    teacher_side: int
    limit: int
    epochs: int
    views: int
    seeds: int

    def data(self, **fields: Any) -> dict[str, Any]:
        """Keys of `run.data`."""
        if self.images is None:
            return {"name": "digits", "limit": self.limit} | fields
        return {"name": "table", "resize": self.side, "limit": self.limit} | fields

    def teacher(self, number: int) -> dict[str, Any]:
        """Keys of `run.teacher`; of digits that of a network of one epoch."""
        if self.images is None:
            optim = {"epochs": 1, "batch": 32}
            return {"model": "resnet8x4", "optim": optim, "data": self.data(), "seed": number}
        half = [0.5, 0.5, 0.5]
        return {
            "model": TEACHERS[number],
            "weights": self.weights[number],
            "size": self.teacher_side,
            "data": self.data(labels="none", mean=half, std=half),
        }

    def experiment(
        self, name: str, model: str, method: Any, teacher: Any, **fields: Any
    ) -> raykd.Experiment:
        """Students of all seeds, from images without labels."""
        found = self.images is not None
        augment = {"pad": self.side // 12, "flip": found}
        values: dict[str, Any] = {
            "data": self.data(augment=augment) | ({"labels": "none"} if found else {}),
            "teacher": teacher,
            "task": {"name": "features", "probe": {"data": self.data(limit=None)}},
            "method": method,
            "views": self.views,
            "optim": OPTIM | {"epochs": self.epochs},
        }
        student = raykd.Student(model, **values | fields)
        grid = {"run.seed": range(self.seeds)}
        scale = {"workers": 0}
        return raykd.Experiment(student, data=self.images, grid=grid, scale=scale, name=name)


@click.command()
@click.option("--images", help="Folder of train.parquet and val.parquet.")
@click.option("--weights", multiple=True, help="Weights of each teacher, of lite0 first.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="One part; again.")
@click.option("--model", "models", multiple=True, default=STUDENTS, show_default=True)
@click.option("--limit", default=1000, show_default=True, help="Training images.")
@click.option("--side", default=96, show_default=True, help="Pixels per side, of students.")
@click.option("--teacher-side", default=160, show_default=True, help="Those of teachers.")
@click.option("--epochs", default=16, show_default=True)
@click.option("--views", default=4, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--csv", "target", type=click.Path(path_type=Path), help="Append the lines there.")
@click.option("--store", "root", help="Folder of what is made; default: a temporary one.")
@click.option("--quick", is_flag=True, help="Digits and a network of one epoch, in seconds.")
def main(
    images: str | None,
    weights: tuple[str, ...],
    parts: tuple[str, ...],
    models: tuple[str, ...],
    target: Path | None,
    root: str | None,
    quick: bool,
    **numbers: int,
) -> None:
    """Print lines of Markdown for each part."""
    if not quick and not (images and weights):
        raise click.UsageError("name --images and --weights, or --quick")
    with tempfile.TemporaryDirectory() as folder:
        if quick:
            images, weights, models = None, ("", ""), ("resnet8",)
            numbers |= {"limit": 96, "side": 8, "epochs": 1, "views": 1, "seeds": 1}
        setting = Setting(Store(root or folder), images, weights, models, **numbers)
        try:
            for part in parts or PARTS:
                for line in _PARTS[part](setting):
                    print(line, flush=True)
                    if target is not None and line.startswith("| ") and "---" not in line:
                        _append(target, part, line)
        except raykd.RaykdError as error:
            raise click.ClickException(str(error)) from error


def _append(target: Path, part: str, line: str) -> None:
    """Add a line of a table to a file."""
    with target.open("a", newline="") as file:
        csv.writer(file).writerow([part, *(cell.strip() for cell in line.strip("|").split("|"))])


def _run(setting: Setting, experiment: raykd.Experiment) -> list[raykd.StudentResult]:
    return [*raykd.run(experiment, setting.store, quiet=True, recipe=False)]


def students(setting: Setting) -> Iterator[str]:
    """A line for each network and method."""
    yield "| network | method | 20-NN % | linear probe % | n | fingerprints |"
    yield "|---|---|---:|---:|---:|---|"
    for model in setting.models:
        for name, method in METHODS.items():
            experiment = setting.experiment("foundation", model, method, setting.teacher(0))
            yield f"| {_short(model)} | {name} | {_judged(_run(setting, experiment))} |"


def _judged(results: list[raykd.StudentResult]) -> str:
    """The cells of a group of students: both probes, how many they are, fingerprints."""
    probes = (
        _as_text([result.result["last"][f"{kind}_top1"] for result in results])
        for kind in ("knn", "linear")
    )
    names = " ".join(result.fingerprint for result in results)
    return " | ".join([*probes, str(len(results)), names])


def _as_text(numbers: list[float]) -> str:
    deviation = f" +- {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.2f}{deviation}"


def _short(model: str) -> str:
    return model.rpartition("/")[2]


def exact(setting: Setting) -> Iterator[str]:
    """A line for each kind of output: of how many numbers the cache has the live teacher's bits."""
    yield "| output | numbers | equal bit for bit as float16 |"
    yield "|---|---:|---:|"
    model = setting.models[0]
    experiment = setting.experiment("foundation", model, METHODS["v3"], setting.teacher(0))
    (cache,) = _train_caches(setting, [experiment])
    images, _ = open_images(setting.store, cache.recipe.data)
    batch = Views(images, cache.recipe.data).batch(torch.arange(min(CHECKED, len(images))), 0)
    live = live_teacher(setting.store, cache.recipe, torch.device("cpu"))(batch)
    table = cache.to_arrow([0]).slice(0, len(batch.ids))
    for name, answer in (("embedding", live.embedding), ("map", live.map)):
        flat = table[name].combine_chunks().flatten().to_numpy()
        stored = torch.from_numpy(flat.copy()).view(len(batch.ids), -1)
        equal = stored == answer.flatten(1).half().float()
        yield f"| {name} | {equal.numel():,} | {int(equal.sum()):,} |"


def speed(setting: Setting) -> Iterator[str]:
    """A line for each network: CPU seconds of its students, and of what they have in common."""
    yield "| network | CPU s from the cache | with the live teacher | ratio | the cache, once |"
    yield "|---|---:|---:|---:|---:|"
    for model in setting.models:
        with tempfile.TemporaryDirectory() as folder:  # where nothing is there yet
            once, cached, live = _times(replace(setting, store=Store(folder), seeds=1), model)
        yield f"| {_short(model)} | {cached:.1f} | {live:.1f} | {live / cached:.2f} | {once:.1f} |"


def _times(setting: Setting, model: str) -> tuple[float, float, float]:
    """CPU seconds of the cache, and of a student from it and with the live teacher."""
    cached, live = (
        setting.experiment("speed", model, METHODS["cosine"], setting.teacher(0), source=source)
        for source in ("auto", "live")
    )
    return (
        _seconds(lambda: raykd.cache(cached, setting.store, quiet=True)),
        _seconds(lambda: _run(setting, cached)),
        _seconds(lambda: _run(setting, live)),
    )


def _seconds(work: Any) -> float:
    """CPU seconds of this process in one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def codecs(setting: Setting) -> Iterator[str]:
    """A line for each codec of maps; no student is trained."""
    maps, targets, classes = _maps(setting)
    yield HEAD
    yield "|---|---|---:|---:|---:|---:|"
    for grid in GRIDS:
        for codec in CODECS:
            if isinstance(codec, PCA) and codec.rank > maps.shape[1]:
                continue
            yield _line(codec, grid, maps, targets, classes)


def _maps(setting: Setting) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The teacher's maps [N, K, H, W] from a cache, shuffled, labels int64 [N], their number."""
    experiment = setting.experiment(
        "codecs", setting.models[0], METHODS["v2"], setting.teacher(0), data=setting.data(), views=1
    )
    (cache,) = _train_caches(setting, [experiment])
    table = cache.to_arrow([0])["map"].combine_chunks()
    flat = torch.from_numpy(table.flatten().to_numpy().copy()).view(len(table), -1)
    fits = read_vectors(cache.folder / STATISTICS, fitted_codecs(cache.recipe.plain()), None).fits
    maps = flat.unflatten(1, fits["map"]["shape"].tolist())
    # Files may be sorted by class.
    order = keyed_random.draw(0, torch.arange(len(maps)), 0, keyed_random.PROBE).argsort()
    targets = open_images(setting.store, cache.recipe.data)[0].targets
    return maps[order], targets[order], cache.recipe.data.resolved().classes


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


def subsets(setting: Setting) -> Iterator[str]:
    """A line for each subset of the teachers, and one of their forwards."""
    yield "| teachers | 20-NN % | linear probe % | n | fingerprints |"
    yield "|---|---:|---:|---:|---|"
    numbers = range(len(setting.weights))
    experiments: list[raykd.Experiment] = []
    chosen = [subset for size in numbers for subset in combinations(numbers, size + 1)]
    for subset in chosen:
        panel = {"panel": [setting.teacher(number) for number in subset], "combine": "none"}
        model, method = setting.models[0], "panel_distillation"
        experiments.append(setting.experiment("foundation-subsets", model, method, panel))
        names = " + ".join(str(number) for number in subset)
        yield f"| {names} | {_judged(_run(setting, experiments[-1]))} |"
    caches = _train_caches(setting, experiments)
    made = sum(cache.rows * len(cache.views) for cache in caches)
    live = sum(len(subset) for subset in chosen) * setting.limit * setting.epochs * setting.seeds
    yield (
        f"{len(chosen)} subsets: {made:,} forwards of teachers for training images, in "
        f"{len(caches)} caches; live they would be {live:,}"
    )


def _train_caches(setting: Setting, experiments: Iterable[raykd.Experiment]) -> list[raykd.Cache]:
    """The distinct caches of training images that some students read; those missing are filled."""
    found: dict[Path, raykd.Cache] = {}
    for experiment in experiments:
        for cache in raykd.cache(experiment, setting.store, quiet=True):
            if cache.split == "train":
                found[cache.folder] = cache
    return [*found.values()]


_PARTS = {"students": students, "exact": exact, "speed": speed, "codecs": codecs}
_PARTS |= {"subsets": subsets}

if __name__ == "__main__":
    main()
