"""Bytes, teacher forwards and time of a plan on this machine, from a few measured steps."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale, most
from raykd.data.dataset import open_images, open_split
from raykd.data.loading.loader import images_at_once
from raykd.data.recipe import Data
from raykd.outputs.manifest import GRAIN
from raykd.planning.plan import Plan
from raykd.planning.remaining import Piece, pieces
from raykd.planning.scaling import GROUP_SECONDS
from raykd.recipes import Optim, OutputsRun, StudentRun
from raykd.storage.store import Store
from raykd.tasks.base import Embedded
from raykd.training import inputs
from raykd.training.compiled import Mode
from raykd.training.microbenchmark import forward_of, step_of
from raykd.training.runs import default_device

_MEASURE_SECONDS = 0.3  # to repeat a step or a forward
_DECODED = 32  # images per measured batch of decoding
_RANKED, _WIDTH = 512, 128  # rows of a measured ranking, and numbers of an embedding
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
    with worker_threads(experiment.scale):
        rates = Rates(store, experiment.scale)
        return [_item(piece, rates) for piece in pieces(experiment, store, work)]


@contextlib.contextmanager
def worker_threads(scale: Scale) -> Iterator[None]:
    """Region in which torch has the threads of a worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(scale.cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _item(piece: Piece, rates: "Rates") -> Item:
    if piece.cache is not None:
        seconds = piece.rows * rates.forward(piece.cache)
        return Item("cache", piece.label, 1, piece.rows, piece.bytes, seconds)
    costs = [rates.cost(run) for run in piece.runs]
    workers, count = most(piece.workers), max(1, len(costs))
    seconds = sum(cost for cost, _ in costs) / max(1, workers)
    if workers > 1:
        seconds += GROUP_SECONDS * count
    elif workers == 1:
        seconds /= min(count, rates.scale.parallel or os.cpu_count() or 1)
    forwards = sum(images for _, images in costs)
    return Item(piece.kind, piece.label, count, forwards, 0, seconds)


@dataclass(frozen=True)
class Measured:
    """Seconds of a step or a forward."""

    image: float  # per image, once it is warm
    start: float  # that the first call takes longer: compilation, above all


class Rates:
    """Seconds per image on this machine, each measured once."""

    def __init__(self, store: Store, scale: Scale) -> None:
        self.scale = scale
        self._store = store
        self._device = default_device()
        self._measured: dict[Any, Measured] = {}

    def cost(self, run: StudentRun) -> tuple[float, int]:
        """Seconds of a training, and the images that a live teacher answers in it."""
        images = self.images(run) * run.optim.epochs
        live = run.method.needs() and not run.cached()
        forwards = images * len(run.method.looks().teacher) * len(run.members()) if live else 0
        seconds = images * self.with_decoding(self.step(run).image, run.shown())
        return seconds + self.rankings(run), forwards

    def images(self, run: StudentRun) -> int:
        """Number of training images."""
        return len(self._targets(run))

    def rows(self, cache: OutputsRun) -> int:
        """Number of images of one view of a cache."""
        return len(open_split(self._store, cache.data, cache.split))

    def forward(self, cache: OutputsRun) -> float:
        """Seconds per image of a cache: the teacher's forward, decoding included."""
        return self.with_decoding(self.answer(cache).image, cache.data)

    def step(self, run: StudentRun, compiled: Mode = False) -> "Measured":
        """A step with decoded images, a live teacher's forward included."""
        # A run with the same steps: a key without the fields that no step depends on.
        optim = Optim(batch=run.optim.batch)
        alike = run.model_copy(update={"seed": 0, "optim": optim, "route": None, "views": "all"})
        return self._measure(
            (alike, compiled),
            run.optim.batch,
            lambda: step_of(run, self._targets(run), self._device, compiled),
        )

    def answer(self, cache: OutputsRun, images: int | None = None) -> "Measured":
        """A forward of a cache's teacher for decoded images, `images` at a time."""
        teacher, data, precision = cache.teacher, cache.data, cache.precision
        images = self.scale.teacher_batch if images is None else images
        images = self.answered_at_once(cache) if images is None else images
        run = tuple(function for function in cache.derived if function.trained)
        key = (teacher.model, getattr(teacher, "size", None), data, precision, images, run)
        return self._measure(
            key, images, lambda: forward_of(teacher, data, images, self._device, precision, run)
        )

    def answered_at_once(self, cache: OutputsRun) -> int:
        """Number of images that a cache's teacher sees at a time, unless `scale` says another."""
        side = getattr(cache.teacher, "size", None)
        sizes = [cache.data.resolved().size, (side or 1, side or 1)]
        return images_at_once(GRAIN, sizes, self._device)

    def rankings(self, run: StudentRun) -> float:
        """Seconds of all metrics of a training that compare each test image with all others."""
        if not run.task.collects:
            return 0.0
        count = len(open_images(self._store, run.data)[1])
        times = sum(map(run.optim.evaluates, range(run.optim.epochs)))
        some = max(2, min(_RANKED, count))

        def embedded() -> Embedded:
            rows = torch.randn(some, _WIDTH, device=self._device)
            return Embedded(torch.arange(some, device=self._device) // 2, rows, rows, rows)

        def of_teacher() -> Callable[[], object]:
            test = embedded()
            return lambda: run.task.of_teacher(test)

        def rank() -> Callable[[], object]:
            test = embedded()
            kept = run.task.of_teacher(test)
            return lambda: run.task.collected(test, kept)

        once, each = (self._measure((run.task, some, f.__name__), some, f).image
            for f in (of_teacher, rank))  # fmt: skip
        # Each row is compared with all, so a part's time grows with the square of its rows.
        return count * (count / some) * (once + times * each)

    def decoding(self, data: Data) -> float:
        """Seconds of one CPU to decode an image; 0 for images in memory."""
        if data.stream is None:
            return 0.0
        images = open_images(self._store, data)[0]
        rows = torch.arange(min(_DECODED, len(images)))

        def decode() -> Callable[[], object]:
            views = inputs.views_of(images, data, torch.device("cpu"), _HERE)
            return lambda: views.batch(rows, 0)

        return self._measure(data, len(rows), decode).image

    def with_decoding(self, seconds: float, data: Data) -> float:
        """Seconds per image, given those of the network alone."""
        each = self.decoding(data)
        processes = inputs.decoders(self.scale, self._device)
        return max(seconds, each / processes) if processes else seconds + each

    def _measure(
        self, key: Any, images: int, make: Callable[[], Callable[[], object]]
    ) -> "Measured":
        """A call's seconds: of the first one, and the fastest later one of `_MEASURE_SECONDS`."""
        if key not in self._measured:
            call = make()
            first = self._seconds(call, time.monotonic)
            fastest, until = float("inf"), time.monotonic() + _MEASURE_SECONDS
            # On one thread CPU time, which is the same beside other work.
            alone = self._device.type == "cpu" and torch.get_num_threads() == 1
            clock = time.process_time if alone else time.monotonic
            while time.monotonic() < until or fastest == float("inf"):
                fastest = min(fastest, self._seconds(call, clock))
            self._measured[key] = Measured(fastest / images, max(0.0, first - fastest))
        return self._measured[key]

    def _seconds(self, call: Callable[[], object], clock: Callable[[], float]) -> float:
        """Seconds of one call, with what a GPU does for it."""
        started = clock()
        call()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return clock() - started

    def _targets(self, run: StudentRun) -> Tensor:
        """The labels of a run's training rows."""
        return open_images(self._store, run.data)[0].targets
