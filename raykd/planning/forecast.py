"""A plan on a described cluster: time, bytes, cost and limit of each piece of work.

The formulas are in `scaling.py`. The time of a network per image is measured on this machine and
divided by the cluster's `rate`, or follows from its operations (`Cluster.tflops`): those of a step
of a few images, in which the student, its method and a live teacher compute on this machine.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from raykd.config.experiment import Experiment
from raykd.config.messages import explain
from raykd.config.scale import least, most
from raykd.config.strict_yaml import read_yaml
from raykd.core.errors import ConfigError, NoRoom
from raykd.data.dataset import open_images, open_split
from raykd.data.recipe import Data
from raykd.data.sources.byte_ranges import Encoded
from raykd.planning import scaling
from raykd.planning.estimate import Rates
from raykd.planning.plan import Plan, depth
from raykd.planning.remaining import Piece, pieces
from raykd.planning.scaling import Cluster, Forecast, Work
from raykd.recipes import OutputsRun, StudentRun
from raykd.storage.store import Store
from raykd.training.cache_builder import needed_bytes
from raykd.training.microbenchmark import forward_flops, step_cost

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
    layer: int = 0  # number of students that its trainings wait for, in turn


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
    parts = pieces(experiment, store, work, equal=True)
    return [forecaster.line(piece) for piece in parts if piece.runs or piece.cache is not None]


class _Forecaster:
    """Forecasts for one cluster; measurements are shared between lines."""

    def __init__(self, experiment: Experiment, store: Store, cluster: Cluster) -> None:
        self._store, self._cluster = store, cluster
        self._rates = Rates(store, experiment.scale)

    def line(self, piece: Piece) -> Line:
        """The line of a piece; of equal trainings the first stands for all."""
        cluster, count = self._cluster, max(1, len(piece.runs))
        if piece.cache is not None:
            workers = 1
            read, time = self._cache(piece.cache, piece.rows, piece.bytes)
        else:
            workers = max(1, least(piece.workers), min(most(piece.workers), cluster.workers()))
            if workers > cluster.workers():
                raise NoRoom(
                    f"{piece.label}: {workers} workers, and the cluster has {cluster.workers()} "
                    "GPUs; lower scale.workers, or add nodes"
                )
            work = self._training(piece.runs[0])
            time = scaling.trainings(work, cluster, workers, count)
            views = cluster.nodes_of(workers) * work.view_bytes
            read = count * work.epochs * (views + work.encoded_bytes)
        return Line(
            piece.kind,
            piece.label,
            count,
            workers,
            time.at_once,
            read,
            piece.bytes,
            time.seconds,
            cluster.price(time.seconds),
            time.limit,
            depth(piece.runs[0]) if piece.runs else 0,
        )

    def _training(self, run: StudentRun) -> Work:
        """The amounts of a training."""
        view = 0
        if run.teacher is not None and run.cached() and run.method.needs():
            rows = len(open_images(self._store, run.data)[0])
            looks = run.method.looks().teacher
            caches = [cache for look in looks for cache in run.caches_at(0, look)]
            view = sum(needed_bytes(cache, rows) for cache in caches)
        images = open_images(self._store, run.data)[0]
        parameters, flops = step_cost(run, images.targets)
        rate = self._cluster.rate
        each = self._rates.step(run).image / rate if rate else flops / self._cluster.operations
        return Work(
            images=len(images),
            epochs=run.optim.epochs,
            batch=run.optim.batch,
            image_seconds=each,
            parameter_bytes=_FLOAT * parameters,
            view_bytes=view,
            encoded_bytes=_encoded_bytes(images),
            decode_seconds=self._decoding(run.shown()),
        )

    def _cache(self, run: OutputsRun, rows: int, written: int) -> tuple[int, Forecast]:
        """Bytes that the missing rows of a cache are computed from, and the time of that."""
        images = open_split(self._store, run.data, run.split)
        read = _encoded_bytes(images) * rows // len(images)
        if self._cluster.rate is None:
            trained = tuple(function for function in run.derived if function.trained)
            flops = forward_flops(run.teacher, run.data, trained)
            seconds = flops / self._cluster.operations
        else:
            seconds = self._rates.answer(run).image / self._cluster.rate
        decoding = self._decoding(run.data)
        time = scaling.outputs(
            rows, seconds, written, self._cluster, encoded_bytes=read, decode_seconds=decoding
        )
        return read, time

    def _decoding(self, data: Data) -> float:
        if data.stream is None or self._cluster.decode_ms is None:
            return self._rates.decoding(data)
        return self._cluster.decode_ms / 1000


def _encoded_bytes(images: object) -> int:
    """Size of all encoded images; 0 for images in memory."""
    return int(images.ranges.length.sum()) if isinstance(images, Encoded) else 0


def totals(lines: list[Line], cluster: Cluster) -> dict[str, float]:
    """Time and price of all lines, one after the other but for what shares the GPUs.

    That is the trainings of one kind and layer with a GPU each, as `Executor` makes them.
    """
    groups: dict[object, list[Line]] = {}
    for number, line in enumerate(lines):
        alone = line.kind == "cache" or line.workers > 1
        groups.setdefault(number if alone else (line.kind, line.layer), []).append(line)
    seconds = sum(
        max(
            *(line.seconds for line in group),
            sum(line.seconds * line.at_once * line.workers for line in group) / cluster.workers(),
        )
        for group in groups.values()
    )
    return {"seconds": seconds, "cost": cluster.price(seconds)}
