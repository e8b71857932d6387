"""A plan on a described cluster: time, bytes, cost and limit of each piece of work.

The formulas are in `scaling.py`. The time of a network per image is measured on this machine and
divided by the cluster's `rate`, or follows from its operations (`Cluster.tflops`): a step counts
the student's forward three times (a backward is worth two) and a live teacher's forward once.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from raykd import models
from raykd.config.experiment import Experiment
from raykd.config.messages import explain
from raykd.config.scale import Workers, least, most
from raykd.config.strict_yaml import read_yaml
from raykd.core.errors import ConfigError, NoRoom
from raykd.data.dataset import open_images, open_split
from raykd.data.recipe import Data
from raykd.data.sources.byte_ranges import Encoded
from raykd.models.staged import parameter_count
from raykd.planning import scaling
from raykd.planning.estimate import Rates, missing_rows
from raykd.planning.plan import CacheJob, Plan, plan
from raykd.planning.scaling import Cluster, Forecast, Work
from raykd.recipes import LogitsRun, StudentRun, training_of
from raykd.storage.store import Store
from raykd.training.cache_builder import needed_bytes
from raykd.training.inputs import serving
from raykd.training.route_results import so_far

_BACKWARD = 2  # forwards that a backward is worth: gradients of inputs and of weights
_FLOAT = 4  # bytes per gradient element: gradients are averaged in float32


@dataclass(frozen=True)
class Line:
    """One piece of work."""

    kind: str  # "teacher", "cache", "prelude" or "students"
    label: str
    count: int
    workers: int  # per training
    at_once: int  # concurrent trainings
    read: int  # bytes from the storage
    written: int  # bytes of cache
    seconds: float
    cost: float  # price of the whole cluster for that time
    limit: str  # the slowest part


def read_cluster(path: Path) -> Cluster:
    """The cluster that a YAML file describes. Raises `ConfigError`."""
    try:
        value = read_yaml(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--cluster {path}: cannot be read ({error})") from error
    try:
        return Cluster.read(value)  # pyright: ignore[reportReturnType]
    except ValidationError as error:
        lines = explain(error, Cluster, "cluster")
        raise ConfigError(
            f"--cluster {path}: expected a file like cluster/machines.yaml\n{lines}"
        ) from error


def forecast(experiment: Experiment, store: Store, work: Plan, cluster: Cluster) -> list[Line]:
    """One line per piece of work. Raises `NoRoom` where workers do not fit."""
    forecaster = _Forecaster(experiment, store, cluster)
    lines = [
        forecaster.training("teacher", teacher.model, [training_of(teacher)], workers)
        for teacher in work.teachers
        if teacher.weights is None
        for workers in [experiment.teacher_workers(teacher)]
    ]
    lines += [line for job in work.caches if (line := forecaster.cache(job)) is not None]
    for prelude in work.preludes:
        run = prelude.training()
        lines.append(forecaster.training("prelude", run.model, [run], experiment.workers(prelude)))
    groups: dict[Any, list[StudentRun]] = {}
    for run in work.students:
        data = run.data.model_copy(update={"seed": 0})
        alike = run.model_copy(update={"seed": 0, "data": data})
        groups.setdefault((alike, experiment.workers(run)), []).append(run)
    for (alike, workers), runs in groups.items():
        label = f"{alike.model}, {alike.method.label}"
        lines.append(forecaster.training("students", label, runs, workers))
    return lines


class _Forecaster:
    """Forecasts for one cluster; measurements are shared between lines."""

    def __init__(self, experiment: Experiment, store: Store, cluster: Cluster) -> None:
        self._store, self._cluster = store, cluster
        self._rates = Rates(store, experiment.scale)

    def training(self, kind: str, label: str, runs: list[StudentRun], asked: Workers) -> Line:
        """Line of equal trainings; the first stands for all."""
        fewest, workers = max(1, least(asked)), max(1, most(asked))
        workers = max(fewest, min(workers, self._cluster.workers()))
        if workers > self._cluster.workers():
            raise NoRoom(
                f"{label}: {workers} workers, and the cluster has {self._cluster.workers()} GPUs; "
                "lower scale.workers, or add nodes"
            )
        work = self.work(runs[0])
        found = scaling.trainings(work, self._cluster, workers, len(runs))
        nodes = self._cluster.nodes_of(workers)
        epochs = len(runs) * work.epochs
        read = epochs * (nodes * work.view_bytes + work.encoded_bytes)
        return self._line((kind, label, len(runs), workers), read, 0, found)

    def work(self, run: StudentRun) -> Work:
        """The amounts of a training."""
        pictures = open_images(self._store, run.data)[0]
        encoded = pictures.ranges.length if isinstance(pictures, Encoded) else torch.zeros(1)
        view = 0
        if run.teacher is not None and run.cached() and run.method.needs():
            looks = run.method.looks().teacher
            view = sum(needed_bytes(run.logits_at(0, look), len(pictures)) for look in looks)
        return Work(
            images=len(pictures),
            epochs=run.optim.epochs,
            batch=run.optim.batch,
            image_seconds=self._step_seconds(run),
            parameter_bytes=_FLOAT * _cost(run.model, run.data)[0],
            view_bytes=view,
            encoded_bytes=int(encoded.sum()),
            decode_seconds=self._decoding(run.shown()),
        )

    def cache(self, job: CacheJob) -> Line | None:
        """Line of a cache's missing views; None if there are none."""
        run = job.run
        if serving(self._store, run, job.views) != run:
            return None
        pictures = open_split(self._store, run.data, run.split)
        rows = missing_rows(self._store, job, len(pictures))
        if not rows:
            return None
        written, read = needed_bytes(run, rows), 0
        if isinstance(pictures, Encoded):
            read = int(pictures.ranges.length.sum()) * rows // len(pictures)
        found = scaling.outputs(
            rows,
            self._forward_seconds(run),
            written,
            self._cluster,
            encoded_bytes=read,
            decode_seconds=self._decoding(run.data),
        )
        label = f"{run.teacher.model}, {rows:,} {run.split} images"
        return self._line(("cache", label, 1, 1), read, written, found)

    def _line(
        self, said: tuple[str, str, int, int], read: int, written: int, found: Forecast
    ) -> Line:
        cost = scaling.cost(self._cluster, found.seconds)
        return Line(*said, found.at_once, read, written, found.seconds, cost, found.limit)

    def _decoding(self, data: Data) -> float:
        if data.stream is None or self._cluster.decode_ms is None:
            return self._rates.decoding(data)
        return self._cluster.decode_ms / 1000

    def _step_seconds(self, run: StudentRun) -> float:
        """Seconds per image in a step on one GPU."""
        if self._cluster.rate is not None:
            return self._cluster.image_seconds(self._rates.step(run), 0.0)
        flops = (1 + _BACKWARD) * _cost(run.model, run.data)[1]
        if run.teacher is not None and run.method.needs() and not run.cached():
            one = _cost(run.teacher.model, run.as_teacher_sees(run.data))[1]
            flops += one * len(run.method.looks().teacher)
        return self._cluster.image_seconds(0.0, flops)

    def _forward_seconds(self, run: LogitsRun) -> float:
        """Seconds per image in a teacher's forward on one GPU."""
        if self._cluster.rate is not None:
            return self._cluster.image_seconds(self._rates.answer(run.teacher, run.data), 0.0)
        return self._cluster.image_seconds(0.0, _cost(run.teacher.model, run.data)[1])


def missing_bytes(experiment: Experiment, store: Store) -> int:
    """Bytes of the caches that an experiment's students still lack."""
    students, measured = so_far(store, experiment.runs)
    total = 0
    for job in plan(students, store.has, measured).caches:
        rows = len(open_split(store, job.run.data, job.run.split))
        total += needed_bytes(job.run, missing_rows(store, job, rows))
    return total


def _cost(model: str, data: Data) -> tuple[int, int]:
    """Parameters of a network, and operations of a forward of one image."""
    read = data.resolved()
    return network_cost(model, read.classes, read.size)


@functools.lru_cache(maxsize=64)
def network_cost(model: str, classes: int, size: tuple[int, int]) -> tuple[int, int]:
    """Parameters, and operations of a forward of one image of `size` (H, W); nothing is computed.

    A multiply-add is two operations.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network = models.build(model, classes).eval()
        network(torch.zeros(1, 3, *size))
    return parameter_count(network), counter.get_total_flops()


def totals(lines: list[Line]) -> dict[str, float]:
    """Sums over all lines, one after the other."""
    return {name: sum(getattr(line, name) for line in lines) for name in ("seconds", "cost")}
