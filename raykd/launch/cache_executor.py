"""Filling caches with the teacher's outputs: here, or by a pool of Ray workers."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from raykd.config.scale import Scale
from raykd.core.errors import NoRoom, RaykdError, Unreachable
from raykd.core.record import Recipe
from raykd.outputs.manifest import Part, manifest_of
from raykd.planning.plan import CacheJob
from raykd.storage.store import Store
from raykd.tracking.console import Teller, clock
from raykd.training.cache_builder import CacheBuild, build_here, check_room, needed_bytes
from raykd.training.cache_verify import SPOT_CHECK, Comparison, compare
from raykd.training.inputs import serving
from raykd.training.runs import default_device

if TYPE_CHECKING:
    from raykd.launch.pool import Pool


class Caching:
    """Whoever fills caches.

    `claimed` is a region in which nobody else does, and says whether it waited; `stay` sets this
    process up for it, `workers` is the pool otherwise.
    """

    def __init__(
        self,
        store: Store,
        scale: Scale,
        teller: Teller,
        claimed: Callable[[Recipe], contextlib.AbstractContextManager[bool]],
        stay: Callable[[], None],
        workers: "Callable[[], Pool]",
    ) -> None:
        self._store = store
        self._scale = scale
        self._teller = teller
        self._claimed = claimed
        self._stay = stay
        self._workers = workers

    def fill(
        self, jobs: Sequence[CacheJob], failed: dict[CacheJob, RaykdError], *, shared: bool
    ) -> list[CacheJob]:
        """Fill the caches that lack views; returns which are filled now.

        One that cannot be filled is put into `failed` and stops no other, unless all would fail
        (`NoRoom`, `Unreachable`). `shared`: others may need the same ones at this moment.
        """
        if jobs:
            self._store.stand()
        jobs = [job for job in jobs if serving(self._store, job.run, job.views) == job.run]
        filled = []
        if shared:
            for job in jobs:
                with _noting(job, failed):
                    filled += [job] if self._fill_shared(job) else []
            return filled
        builds: dict[CacheJob, CacheBuild] = {}
        for job in jobs:
            with _noting(job, failed):
                builds[job] = self._build(job)
        lacking = [(job, build) for job, build in builds.items() if build.missing]
        rows = [(build.run, sum(map(len, build.missing))) for _, build in lacking]
        check_room(self._store, sum(needed_bytes(run, count) for run, count in rows))
        for job, build in lacking:
            with _noting(job, failed), self._claimed(job.run) as waited:
                # Another driver may have filled it since it was looked at.
                known = manifest_of(self._store, job.run)
                same = known is not None and set(known.shards) == set(build.manifest.shards)
                self._fill(build if same and not waited else self._build(job))
                filled.append(job)
        return filled

    def _fill_shared(self, job: CacheJob) -> bool:
        """Fill one cache that others may need at this moment; whether it lacked views."""
        known = manifest_of(self._store, job.run)
        if known is not None and set(job.views) <= set(known.views()):
            return False  # who made them has looked at every byte
        with self._claimed(job.run):
            build = self._build(job)
            self._fill(build)
            return bool(build.missing)

    def _build(self, job: CacheJob) -> CacheBuild:
        return CacheBuild(self._store, job.run, job.views, self._teller.say)

    def _fill(self, build: CacheBuild) -> None:
        """Compute one cache's missing shards, and compare some rows with the live teacher."""
        if not build.missing:
            return
        run, rows = build.run, sum(len(part) for part in build.missing)
        label = f"cache of {run.teacher.model}'s {run.split} logits, epoch {run.anchor}"
        task = self._teller.task(label, rows, "row")

        def done(count: int) -> None:
            task.update(task.done + count)

        started = time.monotonic()
        if self._scale.workers == 0:
            self._stay()
            build_here(build, default_device(), done, self._scale)
            comparison = compare(self._store, run, SPOT_CHECK, default_device())
        else:
            comparison = self._fill_on_ray(build, done)
        seconds = time.monotonic() - started
        self._teller.say(
            f"{label}: {rows} rows in {clock(seconds)} ({rows / seconds:.0f} rows/s); "
            f"{comparison.rows} of them asked again: largest difference {comparison.difference:.1g}"
        )

    def _fill_on_ray(self, build: CacheBuild, done: Callable[[int], None]) -> Comparison:
        """The same with the pool's workers, a shard each at a time."""
        from raykd.launch.pool import Unit

        pool = self._workers()
        units = [
            Unit("shard", (build.run, part), f"view {part.view}, rows {part.start} to {part.stop}")
            for part in build.parts(pool.most)
        ]

        def add(unit: Unit, value) -> None:
            build.add(value)
            part: Part = unit.arguments[1]
            done(len(part))

        try:
            pool.run(units, add)
        finally:
            build.commit()
        build.finish()
        comparisons = []
        check = Unit("compare", (build.run, SPOT_CHECK), "comparison with the live teacher")
        pool.run([check], lambda _, value: comparisons.append(value))
        return comparisons[0]


@contextlib.contextmanager
def _noting(job: CacheJob, failed: dict[CacheJob, RaykdError]) -> Iterator[None]:
    """Keep an error of ours for later, so that other caches are filled."""
    try:
        yield
    except (NoRoom, Unreachable):
        raise
    except RaykdError as error:
        failed[job] = error
