"""How much a plan will read, write and compute, and how long that takes on this machine."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from raykd import models
from raykd.data.images import Data, open_images
from raykd.engine.caches import needed_bytes
from raykd.engine.fit import default_device
from raykd.engine.learner import Learner
from raykd.engine.prepare import serving
from raykd.experiment import Experiment
from raykd.methods.label_only import LabelOnly
from raykd.plan import Plan
from raykd.recipes import StudentRun, TeacherRun, training_of
from raykd.store import Store
from raykd.teachers.manifest import gaps, read_manifest
from raykd.types import Batch

TRAIN_GROUP_SECONDS = 25.0  # to start a group of Ray Train workers, on 2 cores (Ray 2.60)
RAY_SECONDS = 10.0  # to start Ray itself
_MEASURE_SECONDS = 0.5


@dataclass(frozen=True)
class Item:
    """One piece of work that is still to be done."""

    kind: str  # "teacher", "cache", "prelude" or "students"
    label: str
    count: int  # of students; 1 otherwise
    forwards: int  # of the teacher, in images
    bytes: int  # that will be written
    seconds: float  # expected, on this machine


def estimate(experiment: Experiment, store: Store, work: Plan) -> list[Item]:
    """What is to be done, a line each, measured with a few steps of every network.

    Times hold for workers like this process; students in parallel are taken to share the
    work evenly.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(experiment.scale.cpus)))  # as a worker has
    try:
        return _items(experiment, store, work)
    finally:
        torch.set_num_threads(threads)


def _items(experiment: Experiment, store: Store, work: Plan) -> list[Item]:
    """See `estimate`."""
    items = []
    rates = _Rates(store)
    for teacher in work.teachers:
        workers = experiment.teacher_workers(teacher)
        seconds = 0.0
        if teacher.weights is None:
            seconds, _ = rates.cost(training_of(teacher))
            seconds /= max(1, workers)
        seconds += TRAIN_GROUP_SECONDS if workers > 1 else 0.0
        items.append(Item("teacher", teacher.model, 1, 0, 0, seconds))
    for job in work.caches:
        if serving(store, job.run, job.views) != job.run:
            continue
        train, test = open_images(store, job.run.data)
        rows = len(train if job.run.split == "train" else test)
        known = read_manifest(store.path(job.run))
        shards = known.shards if known is not None else ()
        missing = sum(len(part) for view in job.views for part in gaps(shards, view, rows))
        if missing:
            rate = rates.forward(job.run.teacher, job.run.data)
            augment = job.run.data.augment
            how = "mixed " if augment.mix else "strongly augmented " if augment.strong else ""
            images = f"{len(job.views)} views of {rows} {how}{job.run.split} images"
            label = f"{job.run.teacher.model}, {images}"
            size = needed_bytes(job.run, missing)
            items.append(Item("cache", label, 1, missing, size, missing / rate))
    for prelude in work.preludes:
        seconds, forwards = rates.cost(prelude.training())
        seconds /= max(1, experiment.workers(prelude))
        items.append(Item("prelude", prelude.method.name, 1, forwards, 0, seconds))
    groups: dict[tuple[str, int], list[StudentRun]] = {}
    for run in work.students:
        groups.setdefault((run.model, experiment.workers(run)), []).append(run)
    for (model, workers), runs in groups.items():
        costs = [rates.cost(run) for run in runs]
        seconds = sum(cost for cost, _ in costs) / max(1, workers)
        seconds += TRAIN_GROUP_SECONDS * len(runs) if workers > 1 else 0.0
        if workers == 1:
            seconds /= min(len(runs), experiment.scale.parallel or os.cpu_count() or 1)
        items.append(Item("students", model, len(runs), sum(n for _, n in costs), 0, seconds))
    return items


class _Rates:
    """What networks do in a second, each measured once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._trained: dict[tuple[str, int, Data], float] = {}
        self._asked: dict[tuple[TeacherRun, Data], float] = {}

    def cost(self, run: StudentRun) -> tuple[float, int]:
        """Seconds of a training, and the images that a live teacher answers for in it.

        A method's own loss is left out; what it costs stands in `raykd show methods`.
        """
        method, looks = run.method, run.method.looks()
        images = len(open_images(self._store, run.data)[0]) * run.optim.epochs
        seconds, forwards = 0.0, 0
        if method.trains != "helpers":
            seconds += images * len(looks.student) / self.training(run)
        if method.needs() and not run.cached():
            assert run.teacher is not None
            forwards = images * len(looks.teacher)
            seconds += forwards / self.forward(run.teacher, run.data)
        return seconds, forwards

    def training(self, run: StudentRun) -> float:
        """Images per second of a label-only step."""
        key = (run.model, run.optim.batch, run.data)
        if key not in self._trained:
            self._trained[key] = _training_rate(run)
        return self._trained[key]

    def forward(self, teacher: TeacherRun, data: Data) -> float:
        """Images per second of a teacher's forward."""
        key = (teacher, data)
        if key not in self._asked:
            self._asked[key] = _forward_rate(teacher, data)
        return self._asked[key]


def _training_rate(run: StudentRun) -> float:
    """Images per second of a label-only step, forward and backward."""
    assert run.data.classes is not None and run.data.size is not None, "the data was never read"
    device = default_device()
    student = models.build(run.model, run.data.classes)
    learner = Learner(
        student, LabelOnly(), nn.ModuleDict(), autocast=run.precision == "bfloat16"
    ).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    batch = _blank(run.optim.batch, run.data, device)

    def step() -> None:
        losses, _ = learner(batch, None, 1.0)
        losses["label"].backward()

    return run.optim.batch / _seconds(step, device)


def _forward_rate(teacher: TeacherRun, data: Data) -> float:
    """Images per second of the teacher's forward."""
    assert teacher.data.classes is not None, "the data was never read"
    device = default_device()
    network = models.build(teacher.model, teacher.data.classes).eval()
    network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    batch = _blank(256, data, device)

    def forward() -> None:
        with torch.no_grad():
            network(batch.pixels)

    return 256 / _seconds(forward, device)


def _blank(size: int, data: Data, device: torch.device) -> Batch:
    """A batch of black images of class 0."""
    assert data.size is not None
    pixels = torch.zeros(size, 3, *data.size, device=device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    targets = torch.zeros(size, dtype=torch.int64, device=device)
    return Batch(pixels, targets, targets, view=0, epoch=0)


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call: the fastest of those that fit in half a second, after one more."""
    call()
    fastest, until = float("inf"), time.monotonic() + _MEASURE_SECONDS
    while time.monotonic() < until or fastest == float("inf"):
        started = time.monotonic()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.monotonic() - started)
    return fastest
