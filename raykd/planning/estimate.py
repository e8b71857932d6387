"""Bytes, teacher forwards and time of a plan on this machine, from a few measured steps."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale, most
from raykd.data.dataset import open_images, open_split
from raykd.data.recipe import Data
from raykd.outputs.manifest import gaps, manifest_of
from raykd.planning.plan import CacheJob, Plan
from raykd.planning.scaling import GROUP_SECONDS
from raykd.recipes import AnyTeacher, Optim, StudentRun, training_of
from raykd.storage.store import Store
from raykd.training import inputs
from raykd.training.cache_builder import needed_bytes
from raykd.training.inputs import serving
from raykd.training.microbenchmark import forward_of, step_of
from raykd.training.runs import default_device

_MEASURE_SECONDS = 0.3  # to repeat a step or a forward
_FORWARD = 256  # images per measured forward
_DECODED = 32  # images per measured batch of decoding
_HERE = Scale(decoders=0)


@dataclass(frozen=True)
class Item:
    """One piece of work that is still to be done."""

    kind: str  # "teacher", "cache", "prelude" or "students"
    label: str
    count: int  # students; 1 for other kinds
    forwards: int  # images that the teacher answers
    bytes: int  # to be written
    seconds: float  # expected, on this machine


def estimate(experiment: Experiment, store: Store, work: Plan) -> list[Item]:
    """One item per piece of work, timed by a few steps of every network and method.

    Times assume workers like this process, and parallel students that share the work evenly.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(experiment.scale.cpus)))  # as a worker has
    try:
        return _items(experiment, store, work)
    finally:
        torch.set_num_threads(threads)


def _items(experiment: Experiment, store: Store, work: Plan) -> list[Item]:
    """The items of `estimate`."""
    items = []
    rates = Rates(store, experiment.scale)
    for teacher in work.teachers:
        workers = most(experiment.teacher_workers(teacher))
        seconds = 0.0
        if teacher.weights is None:
            seconds, _ = rates.cost(training_of(teacher))
            seconds /= max(1, workers)
        seconds += GROUP_SECONDS if workers > 1 else 0.0
        items.append(Item("teacher", teacher.model, 1, 0, 0, seconds))
    for job in work.caches:
        if serving(store, job.run, job.views) != job.run:
            continue
        rows = len(open_split(store, job.run.data, job.run.split))
        missing = missing_rows(store, job, rows)
        if missing:
            rate = rates.forward(job.run.teacher, job.run.data)
            augment = job.run.data.augment
            how = "mixed " if augment.mix else "strongly augmented " if augment.strong else ""
            images = f"{len(job.views)} views of {rows} {how}{job.run.split} images"
            codec = "" if job.run.codec == "dense" else f" as {job.run.codec}"
            label = f"{job.run.teacher.model}, {images}{codec}"
            size = needed_bytes(job.run, missing)
            items.append(Item("cache", label, 1, missing, size, missing / rate))
    for prelude in work.preludes:
        seconds, forwards = rates.cost(prelude.training())
        seconds /= max(1, most(experiment.workers(prelude)))
        items.append(Item("prelude", prelude.method.name, 1, forwards, 0, seconds))
    groups: dict[tuple[str, int], list[StudentRun]] = {}
    for run in work.students:
        groups.setdefault((run.model, most(experiment.workers(run))), []).append(run)
    for (model, workers), runs in groups.items():
        costs = [rates.cost(run) for run in runs]
        seconds = sum(cost for cost, _ in costs) / max(1, workers)
        seconds += GROUP_SECONDS * len(runs) if workers > 1 else 0.0
        if workers == 1:
            seconds /= min(len(runs), experiment.scale.parallel or os.cpu_count() or 1)
        items.append(Item("students", model, len(runs), sum(n for _, n in costs), 0, seconds))
    return items


def missing_rows(store: Store, job: CacheJob, rows: int) -> int:
    """Number of rows missing in a cache's views; a view has `rows`."""
    known = manifest_of(store, job.run)
    shards = known.shards if known is not None else ()
    return sum(len(part) for view in job.views for part in gaps(shards, view, rows))


class Rates:
    """Times of steps, forwards and decoding on this machine, each measured once."""

    def __init__(self, store: Store, scale: Scale) -> None:
        self._store = store
        self._scale = scale
        self._decoding: dict[Data, float] = {}
        self._steps: dict[StudentRun, float] = {}
        self._forwards: dict[tuple[str, Data], float] = {}

    def cost(self, run: StudentRun) -> tuple[float, int]:
        """Seconds of a training, and the images that a live teacher answers in it."""
        images = len(self._targets(run)) * run.optim.epochs
        live = run.method.needs() and not run.cached()
        forwards = images * len(run.method.looks().teacher) if live else 0
        return images / self.training(run), forwards

    def training(self, run: StudentRun) -> float:
        """Images per second of a training, decoding and a live teacher's forward included."""
        return 1 / self._with_decoding(self.step(run), run.shown(), default_device())

    def step(self, run: StudentRun) -> float:
        """Seconds per decoded image in a step, a live teacher's forward included."""
        # A run with the same steps: a key without the fields that no step depends on.
        optim = Optim(batch=run.optim.batch)
        alike = run.model_copy(update={"seed": 0, "optim": optim, "route": None, "views": "all"})
        if alike not in self._steps:
            device = default_device()
            step = step_of(run, self._targets(run), device)
            self._steps[alike] = _seconds(step, device) / run.optim.batch
        return self._steps[alike]

    def forward(self, teacher: AnyTeacher, data: Data) -> float:
        """Images per second of a teacher's forward."""
        return 1 / self._with_decoding(self.answer(teacher, data), data, default_device())

    def answer(self, teacher: AnyTeacher, data: Data) -> float:
        """Seconds per decoded image in a teacher's forward."""
        key = (teacher.model, data)
        if key not in self._forwards:
            device = default_device()
            forward = forward_of(teacher, data, _FORWARD, device)
            self._forwards[key] = _seconds(forward, device) / _FORWARD
        return self._forwards[key]

    def decoding(self, data: Data) -> float:
        """Seconds of one CPU to decode an image; 0 for images in memory."""
        if data.stream is None:
            return 0.0
        if data not in self._decoding:
            images = open_images(self._store, data)[0]
            views = inputs.shown(images, data, torch.device("cpu"), _HERE)
            rows = torch.arange(min(_DECODED, len(images)))
            self._decoding[data] = _seconds(lambda: views.batch(rows, 0), views.device) / len(rows)
        return self._decoding[data]

    def _with_decoding(self, seconds: float, data: Data, device: torch.device) -> float:
        """Seconds per image, given those of the network alone."""
        each = self.decoding(data)
        processes = inputs.decoders(self._scale, device)
        return max(seconds, each / processes) if processes else seconds + each

    def _targets(self, run: StudentRun) -> Tensor:
        """The labels of a run's training rows."""
        return open_images(self._store, run.data)[0].targets


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: the fastest within `_MEASURE_SECONDS`, after a warm-up call."""
    call()
    fastest, until = float("inf"), time.monotonic() + _MEASURE_SECONDS
    while time.monotonic() < until or fastest == float("inf"):
        started = time.monotonic()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.monotonic() - started)
    return fastest
