"""The remaining work of an experiment in pieces, and the bytes that its caches still lack."""

from dataclasses import dataclass
from typing import Any, Literal

from raykd.config.experiment import Experiment
from raykd.config.scale import Workers
from raykd.core.types import Signal
from raykd.data.dataset import open_split
from raykd.outputs.manifest import gaps, manifest_of
from raykd.planning.plan import CacheJob, Plan, plan
from raykd.recipes import OutputsRun, PreludeRun, StudentRun, training_of
from raykd.storage.store import Store
from raykd.training.cache_builder import needed_bytes
from raykd.training.inputs import serving
from raykd.training.route_results import plannable


@dataclass(frozen=True)
class Piece:
    """One piece of work: trainings that are done alike, or the missing rows of a cache."""

    kind: Literal["teacher", "cache", "prelude", "students"]
    label: str
    runs: tuple[StudentRun, ...] = ()  # trainings; none where a teacher's weights are given
    workers: Workers = 0  # that train each of them
    cache: OutputsRun | None = None
    rows: int = 0  # missing rows of the cache, all views counted

    @property
    def bytes(self) -> int:
        """Bytes of cache to be written."""
        return 0 if self.cache is None else needed_bytes(self.cache, self.rows)


def pieces(experiment: Experiment, store: Store, work: Plan, *, equal: bool = False) -> list[Piece]:
    """The pieces of a plan.

    Students of the same network and number of workers are one piece; with `equal` only those that
    differ in nothing but their seeds.
    """
    parts = []
    for teacher in work.teachers:
        runs = () if teacher.is_given else (training_of(teacher),)
        parts.append(Piece("teacher", teacher.model, runs, experiment.teacher_workers(teacher)))
    preludes: dict[PreludeRun, Piece] = {}
    for prelude in work.preludes:
        workers = experiment.workers(prelude)
        preludes[prelude] = Piece("prelude", prelude.method.name, (prelude.training(),), workers)
    parts += [preludes.pop(prelude) for prelude in work.behind_caches() if prelude in preludes]
    for job in work.caches:
        if rows := missing_rows(store, job):
            parts.append(Piece("cache", _label(store, job), cache=job.run, rows=rows))
    parts += preludes.values()
    groups: dict[Any, list[StudentRun]] = {}
    for run in work.students:
        data = run.data.model_copy(update={"seed": 0})
        alike = run.model_copy(update={"seed": 0, "data": data}) if equal else run.model
        groups.setdefault((alike, experiment.workers(run)), []).append(run)
    for (_, workers), group in groups.items():
        method = f", {group[0].method.label}" if equal else ""
        parts.append(Piece("students", f"{group[0].model}{method}", tuple(group), workers))
    return parts


def missing_rows(store: Store, job: CacheJob) -> int:
    """Number of rows that a cache lacks in the views of a job; 0 where a wider cache has them."""
    if serving(store, job.run, job.views) != job.run:
        return 0
    rows = len(open_split(store, job.run.data, job.run.split))
    manifest = manifest_of(store, job.run)
    shards = () if manifest is None else manifest.shards
    return sum(len(part) for view in job.views for part in gaps(shards, view, rows))


def missing_bytes(experiment: Experiment, store: Store) -> int:
    """Bytes of the caches that an experiment's students still lack.

    Raises `CacheCorrupt` or `CacheMismatch` where a manifest is damaged, or of another recipe.
    """
    students, measured = plannable(store, experiment.runs)
    jobs = plan(students, store.has, measured).caches
    return sum(needed_bytes(job.run, missing_rows(store, job)) for job in jobs)


def _label(store: Store, job: CacheJob) -> str:
    run, augment = job.run, job.run.data.augment
    rows = len(open_split(store, run.data, run.split))
    how = "mixed " if augment.mix else "strongly augmented " if augment.strong else ""
    images = f"{len(job.views)} views of {rows} {how}{run.split} images"
    plain = run.signals() == Signal.EMBEDDING and run.embedding_codec is None
    return f"{run.teacher.model}, {images} as {'embeddings' if plain else run.label}"
