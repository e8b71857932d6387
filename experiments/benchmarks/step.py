"""Cost of a training step, relative to the minimum.

    python -m experiments.benchmarks.step [--json PATH] [--pairs N] [--quick] [--no-ray]

Steps are those of `train` itself: a host that keeps time counts the CPU seconds from
the beginning of an epoch to the end of its last step, evaluation and files left out. Goals are
shown, not enforced; the exit status is 0.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import click
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision import transforms

from experiments.benchmarks.measure import (
    CLASSES,
    TESTED,
    Row,
    Side,
    compared,
    cpu_seconds,
    interleaved,
    random_cache,
    random_images,
    recipe,
    show,
)
from experiments.benchmarks.side_by_side import beside
from raykd.config.experiment import Experiment
from raykd.config.scale import Scale
from raykd.core.errors import RaykdError
from raykd.data.dataset import open_images
from raykd.data.in_memory import Images
from raykd.data.loading.loader import Views
from raykd.data.loading.sampler import epoch_order
from raykd.launch.executor import execute
from raykd.methods.at import AT
from raykd.methods.kd import KD
from raykd.methods.label_only import LabelOnly
from raykd.methods.multi_head_kd import MultiHeadKD
from raykd.methods.skd import SKD
from raykd.recipes import StudentRun
from raykd.storage.store import Store
from raykd.teachers.source import CachedTeacher
from raykd.tracking.console import Terminal
from raykd.tracking.jsonl import read_metrics
from raykd.training.cache_builder import needed_bytes
from raykd.training.hosts.base import EVERY_EPOCH, Host
from raykd.training.hosts.group import GroupHost
from raykd.training.memory import keep_freed_memory
from raykd.training.microbenchmark import step_of
from raykd.training.runs import local_host, train

BATCH = 64  # images per step
STUDENTS = 8  # in the sweep


@dataclass(frozen=True)
class Size:
    """Amount of work in one side of a pair."""

    images: int  # in the data set
    steps: int  # with the narrow networks
    few: int  # steps of the wide networks, of bfloat16 and of each student of the sweep
    loaded: int  # images through the loaders
    read: int  # batches read without a step
    epoch: int  # steps of an epoch with Ray Train


FULL = Size(images=50_000, steps=10, few=3, loaded=2048, read=200, epoch=20)
QUICK = Size(images=4_000, steps=3, few=1, loaded=1024, read=50, epoch=10)


class Stopwatch:
    """A host that counts the CPU seconds of the training part of a one-epoch run."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        """All else as the host does it."""
        return getattr(self.host, name)

    def restart(self, history: list[Mapping[str, Any]]) -> None:
        """Start: the loop goes on with its first epoch."""
        self.host.restart(history)
        self.seconds -= time.process_time()

    def agree(self, module: nn.Module) -> None:
        """Stop: the epoch's last step is done."""
        self.host.agree(module)
        self.seconds += time.process_time()


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--pairs", default=5, show_default=True, help="Pairs of each measurement.")
@click.option("--quick", is_flag=True, help="Fewer steps in each pair, no bfloat16, no Ray.")
@click.option("--no-ray", is_flag=True, help="Leave out the row of Ray Train.")
def main(target: Path | None, pairs: int, quick: bool, no_ray: bool) -> None:
    """Print the table of ratios."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes started here
    keep_freed_memory()  # as every process of ours that trains
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), QUICK if quick else FULL, pairs)
        rows = [*_narrow(bench), *_wide(bench), *_columns(bench), _sweep(bench), *_loader(bench)]
        if not quick:
            rows += [*_half(bench), *_ways(bench)]
        if not (quick or no_ray):
            try:
                rows.append(_ray(bench))
            except RaykdError as error:  # the other rows took minutes, and hold without it
                bench.say(f"Ray Train was not measured: {error}")
    show("the training step", rows, target)


class Bench:
    """The images, the store, and what it takes to run one student in it."""

    def __init__(self, folder: Path, size: Size, pairs: int) -> None:
        self.folder = folder
        self.size = size
        self.pairs = pairs
        self.say = Terminal().say
        self.store = Store(folder / "store")
        self.say(f"making {size.images} images")
        random_images(folder / "images", size.images, TESTED)

    def prepared(self, student: str, teacher: str, steps: int, **changes: Any) -> StudentRun:
        """A run of one epoch of `steps` steps, with its teacher and its cache in the store."""
        run = recipe(self.store, self.folder / "images", student, teacher, steps * BATCH)
        run = run.model_copy(update=changes)
        quiet = Terminal(quiet=True)
        execute(Experiment("bench", (run,), Scale()), self.store, quiet, students=False)
        return run

    def step(self, run: StudentRun, group: bool = False, scale: Scale = EVERY_EPOCH) -> Side:
        """CPU seconds of one step of a run, in a process group where `group` is set."""

        def once() -> float:
            local = local_host(self.store, run, scale)
            grouped = GroupHost(local.checkpoints, local.device, local.log) if group else None
            watch = Stopwatch(grouped or local)
            train(self.store, run, cast(Host, watch))
            return watch.seconds / _steps(run)

        return once

    def views(self, run: StudentRun) -> Views:
        """All the training images, as a run augments and normalises them."""
        train, _ = open_images(self.store, run.data.model_copy(update={"limit": None}))
        return Views(train, run.data)


def _steps(run: StudentRun) -> int:
    """Steps of one epoch."""
    assert run.data.limit is not None
    return run.data.limit // BATCH


def _unaided(run: StudentRun, seed: int = 0) -> StudentRun:
    """Student trained with the labels alone."""
    return run.model_copy(update={"method": LabelOnly(), "teacher": None, "seed": seed})


def _live(run: StudentRun) -> StudentRun:
    """Student with its teacher in the loop."""
    return run.model_copy(update={"source": "live"})


def _narrow(bench: Bench) -> Iterator[Row]:
    """resnet56 -> resnet20 in float32: cached, live, label only, in a group, and reading alone."""
    run = bench.prepared("resnet20", "resnet56", bench.size.steps)
    # The limit that makes the epochs short would make the images and the cache small, too.
    views = bench.views(run)
    size = len(views.images)
    cache = CachedTeacher(random_cache(bench.folder / "cache", size, CLASSES))
    rows = epoch_order(0, 0, size)[: bench.size.read * BATCH].view(-1, BATCH)

    def reading() -> None:
        for batch in views.batches(rows, 0, 0):
            cache(batch)

    sides = {
        "label": bench.step(_unaided(run)),
        "cached": bench.step(run),
        "group": bench.step(run, group=True),
        "live": bench.step(_live(run)),
        "read": lambda: cpu_seconds(reading) / len(rows),
    }
    bench.say("resnet56 -> resnet20, float32")
    with _process_group(bench.folder):
        seconds = interleaved(sides, bench.pairs)
    cached = ("cached KD", seconds["cached"])
    label = ("label only", seconds["label"])
    yield compared("cached KD over label only, resnet20", cached, label, 0.95, "step")
    live = ("live KD", seconds["live"])
    yield compared("cached over live KD, resnet56 -> resnet20", cached, live, 1.65, "step")
    read = (f"Views.batch and OutputsCache.take, {size:,} rows", seconds["read"])
    yield compared(
        "cache read and augmentation in a step, resnet20", read, cached, 0.03, "step", "lower"
    )
    group = ("cached KD, gloo and DDP, world of 1", seconds["group"])
    plain = ("plain loop", seconds["cached"])
    yield compared("a process group of one over the plain loop", group, plain, None, "step")


def _wide(bench: Bench) -> Iterator[Row]:
    """resnet32x4 -> resnet8x4 in float32."""
    run = bench.prepared("resnet8x4", "resnet32x4", bench.size.few)
    bench.say("resnet32x4 -> resnet8x4, float32")
    seconds = interleaved({"cached": bench.step(run), "live": bench.step(_live(run))}, bench.pairs)
    cached, live = ("cached KD", seconds["cached"]), ("live KD", seconds["live"])
    yield compared("cached over live KD, resnet32x4 -> resnet8x4", cached, live, 2.2, "step")


def _columns(bench: Bench) -> Iterator[Row]:
    """resnet56 -> resnet20 by AT and by heads: from the columns of a cache, and live."""
    heads = MultiHeadKD(head="linear", head_epochs=1)
    for name, method, live in (
        ("AT", AT(source="cache"), {"method": AT()}),
        ("multi_head_kd, linear", heads, {"source": "live"}),
    ):
        run = bench.prepared("resnet20", "resnet56", bench.size.steps, method=method)
        kd = run.model_copy(update={"method": KD()})
        bench.say(f"resnet56 -> resnet20 by {name}, float32")
        sides = {"cached": bench.step(run), "live": bench.step(run.model_copy(update=live))}
        seconds = interleaved(sides, bench.pairs)
        both, logits = (needed_bytes(one.outputs_at(0), 1) for one in (run, kd))
        yield compared(
            f"cached over live {name}, resnet56 -> resnet20",
            (f"cached {name}", seconds["cached"]),
            (f"live {name}", seconds["live"]),
            None,
            "step",
            more=f"{both:,} bytes of a row and view, {logits:,} of them the logits",
        )


def _half(bench: Bench) -> Iterator[Row]:
    """Both pairs with student and teacher in bfloat16."""
    for student, teacher in (("resnet20", "resnet56"), ("resnet8x4", "resnet32x4")):
        half = {"precision": "bfloat16", "teacher_precision": "bfloat16"}
        run = bench.prepared(student, teacher, bench.size.few, **half)
        bench.say(f"{teacher} -> {student}, bfloat16")
        sides = {
            "label": bench.step(_unaided(run)),
            "cached": bench.step(run),
            "live": bench.step(_live(run)),
        }
        seconds = interleaved(sides, bench.pairs)
        cached, live = ("cached KD", seconds["cached"]), ("live KD", seconds["live"])
        label = ("label only", seconds["label"])
        name = f"cached over live KD, {teacher} -> {student}, bfloat16"
        yield compared(name, cached, live, None, "step")
        name = f"cached KD over label only, {student}, bfloat16"
        yield compared(name, cached, label, None, "step")


def _ways(bench: Bench) -> Iterator[Row]:
    """Variants of the step: in four parts, and compiled."""
    run = bench.prepared("resnet20", "resnet56", bench.size.steps)
    bench.say("a step in parts, and compiled")
    sides = {"whole": bench.step(run), "parts": bench.step(run, scale=Scale(accumulate=4))}
    seconds = interleaved(sides, bench.pairs)
    parts, whole = ("4 parts of 16", seconds["parts"]), ("64 at once", seconds["whole"])
    yield compared("a step in 4 parts over a whole one, resnet20", parts, whole, None, "step")
    for precision in ("float32", "bfloat16"):
        changed = run.model_copy(update={"precision": precision})
        targets = torch.arange(bench.size.images) % CLASSES
        device = torch.device("cpu")
        compiled, plain = (step_of(changed, targets, device, compiled=c) for c in (True, False))
        sides = {
            "compiled": lambda work=compiled: cpu_seconds(work),
            "plain": lambda work=plain: cpu_seconds(work),
        }
        for side in sides.values():
            side()  # compiles it
        seconds = interleaved(sides, 4 * bench.pairs)
        made, eager = ("torch.compile", seconds["compiled"]), ("eager", seconds["plain"])
        name = f"a compiled forward and backward over a plain one, resnet20, {precision}"
        yield compared(name, made, eager, None, "step", more="the update left out")


def _sweep(bench: Bench) -> Row:
    """Eight students of one cache beside eight that have none."""
    run = bench.prepared("resnet20", "resnet56", bench.size.few)
    methods = [KD() if number % 2 else SKD() for number in range(STUDENTS)]
    ours, base = [], []
    for seed, method in enumerate(methods):
        ours.append(bench.step(run.model_copy(update={"method": method, "seed": seed})))
        base.append(bench.step(_unaided(run, seed)))
    taught, alone = [], []
    bench.say(f"a sweep of {STUDENTS} students")
    for number in range(bench.pairs):
        # One student and its unaided twin after the other, so that both sides see the same hour.
        pairs = [
            (a(), b()) if number % 2 else (b(), a())[::-1] for a, b in zip(ours, base, strict=True)
        ]
        taught.append(sum(a for a, _ in pairs) / STUDENTS)
        alone.append(sum(b for _, b in pairs) / STUDENTS)
    return compared(
        f"a sweep of {STUDENTS} students over one cache, over label only",
        (f"{STUDENTS // 2} x kd and {STUDENTS // 2} x skd", taught),
        (f"{STUDENTS} x label only", alone),
        1.05,
        "step",
        "lower",
        "SKD's calibration, once a student, is not a step and left out",
    )


def _loader(bench: Bench) -> Iterator[Row]:
    """Batches of views over what the field does: one PIL image at a time."""
    run = bench.prepared("resnet20", "resnet56", bench.size.few)
    assert run.data.mean and run.data.std
    views = bench.views(run)
    change = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(run.data.mean, run.data.std),
        ]
    )
    assert isinstance(views.images, Images)
    pixels, targets = views.images.pixels.numpy(), views.images.targets.tolist()
    bench.say("the loader")
    for size in (64, 512):
        rows = epoch_order(0, 0, len(targets))[: bench.size.loaded].view(-1, size)

        def ours(rows: Tensor = rows) -> None:
            for ids in rows:
                views.batch(ids, 0)

        def pillow(rows: Tensor = rows) -> None:
            for ids in rows:
                batch = [(change(Image.fromarray(pixels[i])), targets[i]) for i in ids.tolist()]
                default_collate(batch)

        sides = {
            "ours": lambda work=ours: cpu_seconds(work) / bench.size.loaded,
            "pillow": lambda work=pillow: cpu_seconds(work) / bench.size.loaded,
        }
        seconds = interleaved(sides, bench.pairs)
        yield compared(
            f"views over images one by one, batch {size}",
            ("Views.batch", seconds["ours"]),
            ("PIL, torchvision transforms, default_collate", seconds["pillow"]),
            7.0,
            "image",
        )


@contextlib.contextmanager
def _process_group(folder: Path) -> Iterator[None]:
    """A gloo group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _ray(bench: Bench) -> Row:
    """One worker of Ray Train over the plain loop."""
    run = bench.prepared("resnet20", "resnet56", bench.size.epoch)
    # The first epoch of each has its start in it, and Ray's runs one epoch ahead.
    run = run.model_copy(update={"optim": run.optim.model_copy(update={"epochs": bench.pairs + 2})})
    twin = Store(bench.folder / "twin")
    twin.root.mkdir()
    for kind in ("images", "teachers", "caches"):
        (twin.root / kind).symlink_to(bench.store.root / kind)
    bench.say("Ray Train with one worker, and the plain loop beside it")
    both = beside(bench.store, twin, run, bench.say)
    history, other = (read_metrics(store.path(run)) for store in (bench.store, twin))
    start = both.seconds - sum(metrics["seconds"] for metrics in history)
    rate, rate_beside = (
        median(metrics["images_per_second"] for metrics in epochs[1:]) / BATCH
        for epochs in (history, other)
    )
    return compared(
        "Ray Train with one worker over the plain loop, resnet20",
        ("fit", [value / _steps(run) for value in both.ray]),
        ("train", [value / _steps(run) for value in both.local]),
        0.95,
        "step",
        more=f"wall clock {rate:.2f} over {rate_beside:.2f} steps/s = {rate / rate_beside:.3f}; "
        f"starting and ending the worker took {start:.0f} s",
    )


if __name__ == "__main__":
    main()
