"""A student by raykd and by its peers: steps, epochs with evaluation, and whole schedules.

    python -m experiments.benchmarks.peers [--json PATH] [--pairs N] [--quick] [--cifar FOLDER]
        [--pictures FOLDER --weights FILE] [--only small|pictures] [--torchdistill FOLDER]

        [--pictures FOLDER --weights FILE] [--only small|pictures] [--torchdistill FOLDER]

The peers are timm, torchdistill (installed for this run into a temporary folder; without it its
rows are left out) and a plain PyTorch loop: `peer_loops` says what each does. The same teacher,
student, images, augmentation, loss, optimiser and batch in every one; a round trains a student
with each, in turns. Ratios are of CPU time of one process with one thread, medians over rounds;
wall clock and the accuracy after the last epoch stand beside them. No row leaves out what a user
pays: a step includes its images, an epoch its evaluation and its checkpoint, and a schedule the
reading of the images and, for raykd, the checked teacher and the whole cache.

FOLDER holds train.parquet and test.parquet (or val.parquet) with `image` and `label`; without,
pictures are drawn. `--weights` are those of timm's tf_efficientnet_lite0, whose classes are
named by WordNet ids; without, that teacher is random.
"""

import io
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import click
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from experiments.benchmarks.measure import Row, compared, show
from experiments.benchmarks.peer_loops import (
    PEERS,
    RAYKD,
    Loop,
    Measured,
    Work,
    measured,
    recipe_of,
)
from raykd import models
from raykd.config.experiment import Experiment, parse
from raykd.config.resolve import resolve
from raykd.config.scale import Scale
from raykd.launch.executor import execute
from raykd.recipes import StudentRun, TeacherRun
from raykd.storage.store import Store
from raykd.tracking.console import Terminal
from raykd.training import weights

PUBLISHED, PUBLISHED_CLASSES = "timm/tf_efficientnet_lite0", 1000
CLASSES = 10
TORCHDISTILL = "torchdistill==1.1.5"
MEASURES = {  # what is compared, and its unit
    "a KD step with its images": ("step", "step"),
    "an epoch with evaluation": ("epoch", "epoch"),
    "a schedule, from the files": ("whole", "student"),
}


@dataclass(frozen=True)
class Amount:
    """How much work a round is."""

    train: int
    test: int
    epochs: int
    views: int
    batch: int


SMALL, PICTURES = Amount(1000, 300, 8, 2, 64), Amount(400, 100, 8, 2, 32)
FEW = Amount(40, 20, 4, 1, 10)


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--pairs", default=3, show_default=True, help="Rounds of each comparison.")
@click.option("--quick", is_flag=True, help="A few images, one round.")
@click.option("--cifar", type=click.Path(path_type=Path, exists=True), help="Small images.")
@click.option("--pictures", type=click.Path(path_type=Path, exists=True), help="JPEG pictures.")
@click.option("--weights", "given", type=click.Path(path_type=Path, exists=True), help="Teacher's.")
@click.option("--only", type=click.Choice(["small", "pictures"]), help="That comparison alone.")
@click.option("--torchdistill", type=click.Path(path_type=Path, exists=True), help="Its folder.")
def main(
    target: Path | None,
    pairs: int,
    quick: bool,
    cifar: Path | None,
    pictures: Path | None,
    given: Path | None,
    only: str | None,
    torchdistill: Path | None,
) -> None:
    """Print the table of ratios."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loops, folders = contenders(folder, torchdistill)
        rows: list[Row] = []
        if only != "pictures":
            work = small_images(folder / "small", FEW if quick else SMALL, cifar)
            rows += compare("32 px", work, loops, folders, 1 if quick else pairs)
        if only != "small":
            amount = FEW if quick else PICTURES
            work = jpeg_pictures(folder / "pictures", amount, pictures, given, side=128)
            rows += compare("JPEG files, 128 px", work, loops, folders, 1 if quick else pairs)
    show("raykd and its peers", rows, target)


def contenders(folder: Path, torchdistill: Path | None) -> tuple[dict[str, Loop], tuple[Path, ...]]:
    """The loops that can run here, and the folders that they import from beside Python's own."""
    place = torchdistill or folder / "torchdistill"
    if torchdistill is None:
        words = ["install", "--no-deps", "--quiet", "--target", str(place), TORCHDISTILL]
        try:
            subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=120)
        except (subprocess.SubprocessError, OSError) as error:
            click.echo(f"torchdistill has no rows: it could not be installed here ({error})")
            return RAYKD | {k: v for k, v in PEERS.items() if k != "torchdistill"}, ()
    return RAYKD | PEERS, (place,)


def compare(
    where: str, work: Work, loops: dict[str, Loop], folders: tuple[Path, ...], rounds: int
) -> Iterator[Row]:
    """Train with each loop in turns, and the ratios of raykd over each peer."""
    found: dict[str, list[Measured]] = {name: [] for name in loops}
    for number in range(rounds):
        for name in list(loops)[:: -1 if number % 2 else 1]:
            found[name].append(measured(loops[name], replace(work, seed=number), folders))
            said = found[name][-1]
            click.echo(
                f"{where}, round {number + 1}, {name}: {said.whole.cpu:.1f} s of CPU time, "
                f"{said.whole.wall:.1f} s by the clock, top-1 {said.top1:.1f} %"
            )
    for what, (part, unit) in MEASURES.items():
        for peer in (name for name in loops if name not in RAYKD):
            for ours in RAYKD:
                yield _row(f"{what}, {where}: {ours}, over {peer}", part, unit, ours, peer, found)


def _row(
    name: str, part: str, unit: str, ours: str, peer: str, found: dict[str, list[Measured]]
) -> Row:
    """How many times as fast as a peer: its CPU seconds over ours, and the clock's beside them."""
    both = [[getattr(one, part) for one in found[who]] for who in (ours, peer)]
    wall = " over ".join(f"{median(spent.wall for spent in side):.3g} s" for side in both)
    top1 = " over ".join(f"{median(one.top1 for one in found[who]):.1f} %" for who in (ours, peer))
    cpu = [[spent.cpu for spent in side] for side in both]
    more = f"by the clock {wall}; top-1 {top1}"
    # The same work is not to cost more, and the cache is to pay, its own cost included.
    goal = 1.0 if ours == "raykd, live" else 1.3
    return compared(name, (ours, cpu[0]), (peer, cpu[1]), goal, unit, more=more)


# Images and teachers


def small_images(folder: Path, amount: Amount, parquet: Path | None) -> Work:
    """Images of 32 pixels, a teacher trained on them here, and a student of the same family."""
    lay_out(folder, amount, parquet, 32)
    text = f"""
    data: {{path: {folder}}}
    run:
      model: resnet20
      data: {{name: folder, augment: {{pad: 4, flip: true}}}}
      method: label_only
      optim: {{epochs: {2 * amount.epochs}, batch: {amount.batch}}}
    """
    store = Store(folder / "store")
    (run,) = resolve(parse(text, "bench"), store).runs
    assert isinstance(run, StudentRun)
    click.echo("training the teacher of small images ...", err=True)
    execute(Experiment("bench", (run,), Scale()), store, Terminal(quiet=True))
    return Work(
        folder,
        teacher="resnet20",
        weights=store.path(run) / weights.STUDENT,
        student="resnet8",
        side=32,
        streamed=False,
        chosen=tuple(range(CLASSES)),
        outputs=CLASSES,
        epochs=amount.epochs,
        views=amount.views,
        batch=amount.batch,
    )


def jpeg_pictures(
    folder: Path,
    amount: Amount,
    parquet: Path | None,
    given: Path | None,
    side: int,
    teacher_side: int | None = None,
    student: str = "timm/mobilenetv3_small_050",
) -> Work:
    """JPEG files of 160 pixels and more, decoded in every epoch, and a published teacher."""
    lay_out(folder, amount, parquet, 160)
    path = given or folder / "teacher.safetensors"
    if given is None:
        torch.manual_seed(0)
        weights.save_weights(path, models.build(PUBLISHED, PUBLISHED_CLASSES))
    work = Work(
        folder,
        teacher=PUBLISHED,
        weights=path,
        student=student,
        side=side,
        streamed=True,
        chosen="wordnet" if parquet and given else tuple(range(CLASSES)),
        outputs=PUBLISHED_CLASSES,
        teacher_side=teacher_side,
        epochs=amount.epochs,
        views=amount.views,
        batch=amount.batch,
    )
    teacher = recipe_of(work, Store(folder / "store")).teacher
    assert isinstance(teacher, TeacherRun)
    groups = teacher.groups()
    assert groups is not None and all(len(group) == 1 for group in groups)
    return replace(work, chosen=tuple(index for (index,) in groups))


def lay_out(folder: Path, amount: Amount, parquet: Path | None, side: int) -> None:
    """Files by class in train and test of `folder`: some of a table's, or drawn ones."""
    for split, count in (("train", amount.train), ("test", amount.test)):
        each = -(-count // CLASSES)
        images = _drawn(split, each, side) if parquet is None else _read(parquet, split, each)
        for number, (label, data) in enumerate(images):
            path = folder / split / label / f"{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def _read(parquet: Path, split: str, each: int) -> Iterator[tuple[str, bytes]]:
    """The first images of each class of a table, with their labels."""
    begins = {"train": ("train",), "test": ("test", "val")}[split]
    files = [path for path in sorted(parquet.glob("*.parquet")) if path.name.startswith(begins)]
    if not files:
        raise SystemExit(f"{parquet}: expected {' or '.join(begins)}*.parquet, found none")
    counts: dict[str, int] = {}
    for path in files:
        for rows in pq.ParquetFile(path).iter_batches(256, columns=["image", "label"]):
            for row in rows.to_pylist():
                label = str(row["label"])
                counts[label] = counts.get(label, 0) + 1
                if counts[label] <= each:
                    yield label, row["image"]["bytes"]


def _drawn(split: str, each: int, side: int) -> Iterator[tuple[str, bytes]]:
    """JPEG images whose class is a smooth pattern below noise."""
    patterns = np.random.default_rng(0).uniform(64, 192, (CLASSES, 4, 4, 3))
    noise = np.random.default_rng(1 + (split == "test"))
    for label, pattern in enumerate(patterns):
        smooth = Image.fromarray(pattern.astype(np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        for _ in range(each):
            pixels = np.asarray(smooth) + noise.normal(0, 40, (side, side, 3))
            data = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=92)
            yield str(label), data.getvalue()


if __name__ == "__main__":
    main()
