"""CPU time of students of a published teacher: from its cache, live, and without a teacher.

    python -m experiments.benchmarks.published [--json PATH] [--pairs N] [--quick]

The teacher is timm's tf_efficientnet_lite0 of 1,000 classes at its own 224 pixels, mapped to the
100 of the images; students see 96 pixels. Weights and images are random: times do not depend on
them. Over E epochs of V views a cached student costs E steps an image and V teacher forwards, a
live one E steps with a forward each.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import torch

from experiments.benchmarks.measure import (
    CLASSES,
    TESTED,
    Row,
    compared,
    cpu_seconds,
    interleaved,
    random_images,
    show,
)
from experiments.benchmarks.step import Stopwatch
from raykd import models
from raykd.config.experiment import Experiment, parse
from raykd.config.resolve import resolve
from raykd.config.scale import Scale
from raykd.launch.executor import execute
from raykd.methods.label_only import LabelOnly
from raykd.recipes import StudentRun, TeacherRun
from raykd.storage.store import Store
from raykd.tracking.console import Terminal
from raykd.training.memory import keep_freed_memory
from raykd.training.microbenchmark import forward_of
from raykd.training.runs import local_host, train
from raykd.training.weights import save_weights

STUDENTS = ("timm/mobilenetv3_small_050", "timm/resnet10t", "torchvision/resnet18")
TEACHER, OWN_CLASSES = "timm/tf_efficientnet_lite0", 1000
BATCH = 32
SHARES = (1.0, 0.25, 0.1)  # views per epoch


@click.command()
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the rows there.")
@click.option("--pairs", default=5, show_default=True, help="Pairs of each measurement.")
@click.option("--quick", is_flag=True, help="Two steps in each pair, the smallest student alone.")
def main(target: Path | None, pairs: int, quick: bool) -> None:
    """Print the table of ratios."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder, steps = Path(name), 2 if quick else 8
        random_images(folder / "images", max(CLASSES, steps * BATCH), TESTED)
        save_weights(folder / "teacher.safetensors", models.build(TEACHER, OWN_CLASSES))
        rows = [
            row
            for student in STUDENTS[: 1 if quick else None]
            for row in _rows(folder, student, steps, pairs)
        ]
    show("students of a published teacher", rows, target)


def _rows(folder: Path, student: str, steps: int, pairs: int) -> Iterator[Row]:
    """The ratios of one student."""
    store = Store(folder / "store")
    run = _recipe(store, folder, student, steps * BATCH)
    execute(Experiment("bench", (run,), Scale()), store, Terminal(quiet=True), students=False)
    assert isinstance(run.teacher, TeacherRun)
    forward = forward_of(run.teacher, run.data, BATCH, torch.device("cpu"))

    def seconds_of(run: StudentRun) -> float:
        """CPU seconds of a step."""
        watch = Stopwatch(local_host(store, run))
        train(store, run, watch)  # pyright: ignore[reportArgumentType]
        return watch.seconds / steps

    alone = run.model_copy(update={"method": LabelOnly(), "teacher": None})
    live = run.model_copy(update={"source": "live"})
    seconds = interleaved(
        {
            "alone": lambda: seconds_of(alone),
            "cached": lambda: seconds_of(run),
            "live": lambda: seconds_of(live),
            "forward": lambda: cpu_seconds(forward),
        },
        pairs,
    )
    cached = ("from the cache", seconds["cached"])
    base = ("without a teacher", seconds["alone"])
    yield compared(f"cached step over none, {student}", cached, base, 0.97, "step")
    for share in SHARES:
        both = zip(seconds["cached"], seconds["forward"], strict=True)
        total = [step + share * teacher for step, teacher in both]
        goal = 4.0 if student == STUDENTS[0] and share == min(SHARES) else None
        name = f"cached over live, V / E = {share:g}, {student}"
        ours = ("step and share of a forward", total)
        yield compared(name, ours, ("live step", seconds["live"]), goal, "step")


def _recipe(store: Store, folder: Path, student: str, rows: int) -> StudentRun:
    """A student of cached KD."""
    images = f"name: table, resize: 96, limit: {rows}"
    text = f"""
    data: {{path: {folder / "images"}}}
    run:
      model: {student}
      data: {{{images}, augment: {{pad: 8, flip: true}}}}
      teacher:
        model: {TEACHER}
        weights: {folder / "teacher.safetensors"}
        classes: {[*range(CLASSES)]}
        size: 224
        data: {{{images}}}
      method: kd
      optim: {{epochs: 1, batch: {BATCH}}}
      views: 1
    """
    (run,) = resolve(parse(text, "bench"), store).runs
    assert isinstance(run, StudentRun)
    return run


if __name__ == "__main__":
    main()
