"""Whoever does a plan's work: this process, a pool of Ray workers, or Ray Train.

Ray is imported only where something is to run on it, so that `scale.workers: 0` needs none.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from raykd.engine.caches import CacheBuild, build_here, check_room, needed_bytes
from raykd.engine.compare import SPOT_CHECK, Comparison, compare
from raykd.engine.fit import default_device, local_host, train
from raykd.engine.memory import keep_freed_memory
from raykd.engine.prepare import serving
from raykd.engine.search import decide
from raykd.errors import RaykdError, WorkFailed
from raykd.experiment import Experiment
from raykd.launch.company import Company
from raykd.plan import CacheJob
from raykd.progress import Teller, clock
from raykd.recipes import Search, TeacherRun, Training
from raykd.record import fingerprint
from raykd.store import Store
from raykd.teachers.manifest import Part, manifest_of

if TYPE_CHECKING:
    from raykd.launch.pool import Pool


class Crew:
    """Whoever does the work: this process, a pool of Ray workers, or Ray Train.

    One worker (`workers` 1) goes to the pool, more go to Ray Train, none stays here.
    """

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        teller: Teller,
        stack: contextlib.ExitStack,
        company: Company,
    ) -> None:
        self._experiment = experiment
        self._scale = experiment.scale
        self._store = store
        self._teller = teller
        self._stack = stack
        self._company = company
        self._pool: Pool | None = None
        self._connected = False

    def train(self, jobs: Sequence[tuple[Training, int]]) -> None:
        """Train teachers, preludes or students with the given numbers of workers each.

        A failed one does not stop the others; the first error is raised at the end.
        """
        errors: list[RaykdError] = []
        # The pool's workers hold processors that Ray Train would wait for without end, so what
        # the pool does comes first, and the pool goes home before Ray Train starts.
        packed = [run for run, workers in jobs if workers == 1]
        if packed:
            with _collected(errors):
                self._train_packed(packed)
        for run, workers in jobs:
            if workers != 1:
                with _collected(errors):
                    self._train_one(run, workers)
        if len(errors) > 1:
            lines = dict.fromkeys(str(error) for error in errors)
            raise WorkFailed("\n".join(lines)) from errors[0]
        if errors:
            raise errors[0]

    def precompute(self, jobs: Sequence[CacheJob]) -> list[CacheJob]:
        """Fill the caches that lack views; returns which did."""
        self._store.root.mkdir(parents=True, exist_ok=True)
        jobs = [job for job in jobs if serving(self._store, job.run, job.views) == job.run]
        if self._company.shared:
            return [job for job in jobs if self._precompute_shared(job)]
        builds = [(job, self._build(job)) for job in jobs]
        lacking = [(job, build) for job, build in builds if build.missing]
        rows = [(build.run, sum(map(len, build.missing))) for _, build in lacking]
        check_room(self._store, sum(needed_bytes(run, count) for run, count in rows))
        for _, build in lacking:
            self._fill(build)
        return [job for job, _ in lacking]

    def _precompute_shared(self, job: CacheJob) -> bool:
        """Fill one cache that others may need at this moment; whether it lacked views."""
        known = manifest_of(self._store, job.run)
        if known is not None and set(job.views) <= set(known.views()):
            return False  # who made them has looked at every byte
        with self._company.claiming(job.run):
            build = self._build(job)
            if build.missing:
                self._fill(build)
            return bool(build.missing)

    def _build(self, job: CacheJob) -> CacheBuild:
        return CacheBuild(self._store, job.run, job.views, self._teller.say)

    def decide(self, search: Search) -> None:
        """Choose the next anchor of a search, whose last stage is finished."""
        with self._company.claiming(search):
            if self._scale.workers == 0:
                self._stay()
                decide(self._store, search, default_device())
                return
            from raykd.launch.pool import Unit

            unit = Unit("decide", (search,), f"the next anchor of {describe(search.student)}")
            self._workers().run([unit])

    def _fill(self, build: CacheBuild) -> None:
        """Compute one cache's missing shards, and compare some rows with the live teacher."""
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
            for part in build.parts(pool.size)
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

    def _train_packed(self, runs: Sequence[Training]) -> None:
        """One worker each, several at a time, in workers that are used again."""
        from raykd.launch.pool import Unit

        units = [Unit("train", (run,), describe(run)) for run in runs]
        watched: dict[Unit, contextlib.ExitStack] = {}

        def begun(unit: Unit) -> None:
            if unit not in watched:
                watched[unit] = contextlib.ExitStack()
                watched[unit].enter_context(self._watch(unit.arguments[0]))

        def done(unit: Unit, _: object) -> None:
            watched.pop(unit).close()

        try:
            self._workers().run(units, done, begun)
        finally:
            for stack in watched.values():
                stack.close()

    def _train_one(self, run: Training, workers: int) -> None:
        """Here, or on Ray Train."""
        with self._company.claiming(run), self._watch(run):
            if self._store.has(run):
                return  # whoever had the claim before has made it
            if workers == 0:
                self._stay()
                told = functools.partial(self._company.told, run)
                host = local_host(self._store, run, self._scale, told)
                train(self._store, run, host)
                return
            self._dismiss()
            self._connect(workers)
            from raykd.launch.train import fit

            self._teller.say(f"{describe(run)}: starting {workers} workers with Ray Train")
            fit(self._store, run, workers, self._scale, self._company.callbacks(run))

    def _watch(self, run: Training) -> contextlib.AbstractContextManager[None]:
        """Show a run's epochs while it is being trained."""
        return self._teller.watching(
            describe(run), self._store.path(run), run.optim.epochs, self._store
        )

    def _stay(self) -> None:
        """Set this process up as a worker is, with `scale.cpus` threads."""
        torch.set_num_threads(max(1, int(self._scale.cpus)))
        keep_freed_memory()

    def _connect(self, processors: int) -> None:
        if not self._connected:
            from raykd.launch.cluster import connected

            context = connected(self._scale, self._teller.say, processors)
            self._stack.enter_context(context)
            self._connected = True

    def _workers(self) -> "Pool":
        if self._pool is None:
            self._connect(1)
            from raykd.launch.pool import Pool

            self._pool = self._stack.enter_context(Pool(self._store, self._scale))
        return self._pool

    def _dismiss(self) -> None:
        if self._pool is not None:
            self._pool.__exit__()
            self._pool = None


def describe(run: Training) -> str:
    """A run in a few words, with the start of its fingerprint."""
    what = "teacher" if isinstance(run, TeacherRun) else run.method.label
    return f"{what} {run.model or 'of the teacher'} seed {run.seed} ({fingerprint(run)[:8]})"


@contextlib.contextmanager
def _collected(errors: list[RaykdError]) -> Iterator[None]:
    """Keep an error of ours for later, so that other work goes on."""
    try:
        yield
    except RaykdError as error:
        errors.append(error)
