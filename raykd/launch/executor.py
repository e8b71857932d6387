"""The executor: makes the artefacts of a plan (teachers, caches, preludes, students).

Only what the store lacks is made. A student may need another one first: the assistant that
teaches it, or the stage before. The route of a greedy search is found stage by stage, so work is
done in rounds until none is left.

Ray is imported only where something is to run on it, so that `scale.workers: 0` needs none.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale, Workers, least, most
from raykd.core.errors import NoRoom, RaykdError, Unreachable, folded
from raykd.core.plugins import loaded
from raykd.core.record import Recipe, fingerprint
from raykd.core.shutdown import Notice, noticed
from raykd.core.words import counted
from raykd.launch.units import ArtefactMaker, Local, Strategy, Unit
from raykd.outputs.manifest import manifest_of
from raykd.planning.plan import CacheJob, Plan, plan
from raykd.planning.preflight import check_disk, preflight
from raykd.recipes import (
    AnyStudent,
    OutputsRun,
    Search,
    SearchedStudent,
    StudentRun,
    TeacherRun,
    Training,
)
from raykd.storage import locks
from raykd.storage.store import Store
from raykd.tracking.console import EpochLines, Terminal, clock
from raykd.tracking.jsonl import following
from raykd.tracking.logger import Labels, Logger
from raykd.training.cache_builder import CacheBuild, check_room, needed_bytes
from raykd.training.cache_verify import SPOT_CHECK, Comparison
from raykd.training.inputs import serving
from raykd.training.integrity import finish_again
from raykd.training.result import teacher_said
from raykd.training.route_results import (
    DECISIONS,
    anchors_of,
    is_complete,
    is_found,
    measures,
    next_stage,
    read_decisions,
    route_found,
)

if TYPE_CHECKING:
    from ray.train import UserCallback

    from raykd.launch.pool import Pool

KINDS = ("teachers", "caches", "preludes", "students")
_LOCKS = 256  # trainings in the pool that are locked at a time; each lock is an open file


@dataclass(frozen=True)
class Outcome:
    """The artefacts that a call made, and those that the store had."""

    made: dict[str, int]  # kind -> number of artefacts
    reused: dict[str, int]
    seconds: float


def execute(
    experiment: Experiment, store: Store, terminal: Terminal, *, students: bool = True
) -> Outcome:
    """Make every artefact of a resolved experiment that the store lacks.

    Nothing is begun where a part of it cannot be done: see `preflight`. Raises what
    `Executor.make` raises.
    """
    preflight(experiment, store)
    check_disk(experiment, store)

    def workers(run: Training) -> Workers:
        if isinstance(run, TeacherRun):
            return experiment.teacher_workers(run)
        return experiment.workers(run)

    executor = Executor(store, experiment.scale, terminal, workers, name=experiment.name)
    return executor.make(experiment.runs, students=students)


class Executor:
    """Makes artefacts that a store lacks, each once, in the order in which they need each other.

    Strategies: a training runs in this process with 0 workers, in a pool of reused Ray workers
    with 1, on Ray Train with more. Shards of caches and the decisions of searches go to this
    process where `scale.workers` is 0, else to the pool.
    """

    def __init__(
        self,
        store: Store,
        scale: Scale,
        terminal: Terminal,
        workers: Callable[[Training], Workers],
        *,
        name: str = "",
        trial: str | None = None,
        lock: locks.Lock | None = None,
        notice: Callable[[], AbstractContextManager[Notice]] = noticed,
        loggers: Sequence[Logger] = (),
        train_callbacks: Callable[[Training], "list[UserCallback]"] = lambda run: [],
        survey: bool = True,
    ) -> None:
        """The keywords' defaults suit a driver; trials of a sweep give others.

        workers: number of workers of a training.
        name, trial: labels of the metrics.
        lock: keeps other processes from making the same artefact; default: the store's file locks.
        notice: notice of a shutdown, for trainings in this process.
        loggers: further loggers of trainings in this process.
        train_callbacks: callbacks for Ray Train's controller, for a training on several workers.
        survey: read every shard of a cache once, to find damaged ones; else trust its manifest.
        """
        self._store, self._scale, self._terminal, self._workers = store, scale, terminal, workers
        self._name, self._trial = name, trial
        self._lock = lock or functools.partial(locks.held, store, role="maker", say=terminal.say)
        self._notice, self._loggers, self._train_callbacks = notice, loggers, train_callbacks
        self._survey = survey
        # While `make` runs:
        self._students = True
        self._made: set[Any] = set()  # recipes
        self._reused: set[Any] = set()
        self._errors: list[RaykdError] = []
        self._stack = contextlib.ExitStack()  # closes the cluster and the pool
        self._local: Local | None = None
        self._pool: Pool | None = None
        self._connected = False

    def make(self, runs: Iterable[AnyStudent], *, students: bool = True) -> Outcome:
        """Make students with all that they need; with `students` False stop after their caches.

        Finished artefacts are kept: the same call continues one that was interrupted. A failure
        stops only the work that needs the failed artefact. Raises the errors at the end, as one.
        """
        started = time.monotonic()
        self._students, self._made, self._reused, self._errors = students, set(), set(), []
        try:
            with self._stack, self._collecting():
                self._make_in_rounds(tuple(runs))
        finally:
            self._pool, self._connected = None, False
        if self._errors:
            raise folded(self._errors)
        made, reused = _counts(self._made), _counts(self._reused)
        return Outcome(made, reused, time.monotonic() - started)

    # Rounds and layers

    def _make_in_rounds(self, requests: Sequence[AnyStudent]) -> None:
        """Make the students whose route is known, and find the routes of the others on the way."""
        searches = dict.fromkeys(run.search for run in requests if isinstance(run, SearchedStudent))
        runs = [run for run in requests if isinstance(run, StudentRun)]
        stages = {search: self._next_stage(search) for search in searches}
        caches = [cache for search, stage in stages.items() if stage for cache in measures(search)]
        while True:
            runs += [stage for stage in stages.values() if stage is not None]
            runs += self._students_on_found_routes(requests)
            self._make_runs(runs, caches)
            unfinished = [search for search, stage in stages.items() if self._decide(search, stage)]
            if not (self._students and stages):
                return
            stages = {search: self._next_stage(search) for search in unfinished}
            runs, caches = [], []

    def _next_stage(self, search: Search) -> StudentRun | None:
        """The stage that a search has to train next; None where it is over, or unreadable."""
        with self._collecting():
            return next_stage(self._store, search)
        return None

    def _students_on_found_routes(self, requests: Sequence[AnyStudent]) -> list[StudentRun]:
        students = []
        for run in requests:
            with self._collecting():
                students.append(
                    route_found(self._store, run) if isinstance(run, SearchedStudent) else None
                )
        return [student for student in students if student is not None]

    def _make_runs(self, runs: Sequence[StudentRun], caches: Sequence[OutputsRun]) -> None:
        """Make students and what they need, and the first view of some caches."""
        has, runs = self._store.has, tuple(dict.fromkeys(runs))
        # Everything that is in the store counts as reused, with what it was made from.
        everything = plan(runs, caches=caches)
        trained = self._trained(everything)
        for run in trained:
            self._restore_marker(run)
        caches_too = [*trained, *(job.run for job in everything.caches)]
        self._store.keep_plugins({digest for run in caches_too for digest in run.plugins})
        work = plan(runs, has if self._students else lambda run: False, caches)
        finished = [run for run in trained if has(run)] + [job.run for job in everything.caches]
        self._reused.update(run for run in finished if run not in self._made)
        self._announce(work)
        for layer in work.layers():
            self._make_layer(layer)

    def _make_layer(self, layer: Plan) -> None:
        """Make artefacts whose needs are in the store, or have failed."""
        has = self._store.has
        self._train(layer.teachers)
        self._say_accuracy(layer.teachers)
        first = layer.behind_caches()
        self._train([run for run in first if has(run.teacher)])
        ready = [job for job in layer.caches if all(map(has, job.run.sources()))]
        failed = [job.run for job in ready if not self._fill(job)]
        if self._students:
            others = [run for run in layer.preludes if run not in first]
            self._train([run for run in others if has(run.teacher)])
            self._train([run for run in layer.students if self._is_ready(run, failed)])

    def _trained(self, work: Plan) -> list[Training]:
        """The trainings of a plan; without students, those that its caches are computed by."""
        if self._students:
            return [*work.teachers, *work.preludes, *work.students]
        return [*work.teachers, *work.behind_caches()]

    def _is_ready(self, run: StudentRun, failed: Sequence[OutputsRun]) -> bool:
        """True where all that a student needs is there; `failed` are caches with an error."""
        needs = (*run.members(), run.after, run.prelude())
        if not all(self._store.has(need) for need in needs if need is not None):
            return False
        caches = plan([run]).caches if failed else ()
        return not any(job.run in failed or job.run.wider() in failed for job in caches)

    def _restore_marker(self, run: Training) -> None:
        """Finish an artefact that is whole but for its marker, though nothing may need it."""
        with self._collecting():
            if not self._store.has(run) and finish_again(self._store, run):
                self._terminal.say(
                    f"{self._store.where(self._store.path(run))} is whole but for its marker, "
                    "which is written again; nothing is trained"
                )

    # Trainings

    def _train(self, runs: Iterable[Training]) -> None:
        """Train what the store lacks; errors are kept."""
        missing = [run for run in runs if not self._store.has(run)]
        # The pool's workers hold processors for which Ray Train would wait forever, so trainings
        # in the pool come first, and the pool is closed before Ray Train starts.
        for count in (1, 0):
            self._train_singly([run for run in missing if most(self._workers(run)) == count], count)
        for run in missing:
            if most(self._workers(run)) > 1:
                with self._collecting():
                    self._train_together(run, self._workers(run))
        self._made.update(run for run in missing if self._store.has(run))

    def _train_singly(self, runs: Sequence[Training], workers: int) -> None:
        """Train each in one process; those that another driver is training come last."""
        postponed: list[Training] = []
        count = _LOCKS if workers else 1
        for start in range(0, len(runs), count):
            with contextlib.ExitStack() as held, self._collecting():
                some = runs[start : start + count]
                free = [run for run in some if held.enter_context(self._lock(run, wait=False))]
                postponed += [run for run in some if run not in free]
                self._train_locked(free, workers)
        for run in postponed:
            with self._collecting(), self._held(run):
                self._train_locked([run], workers)

    def _train_locked(self, runs: Sequence[Training], workers: int) -> None:
        """Train what the store still lacks, once its locks are held."""
        units = [Unit("train", (run,), describe(run)) for run in runs if not self._store.has(run)]
        if not units:
            return
        shown: dict[Unit, contextlib.ExitStack] = {}
        events = self._strategy(workers).run(units)
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(events))
            for event in events:
                unit = event.unit
                if event.state != "begun":
                    shown[unit].close()
                elif unit not in shown:  # else its worker died and it is tried again
                    shown[unit] = stack.enter_context(contextlib.ExitStack())
                    shown[unit].enter_context(self._progress(unit.arguments[0]))
                if event.error is not None:
                    self._errors.append(event.error)

    def _train_together(self, run: Training, workers: Workers) -> None:
        """Train with several workers on Ray Train."""
        with self._held(run), self._progress(run):
            if self._store.has(run):
                return  # another process made it meanwhile
            self._close_pool()
            self._connect(most(workers))
            from raykd.launch.capacity import await_room, reporting_losses
            from raykd.launch.train import fit

            need = (self._scale, least(workers), describe(run), self._terminal.say)
            await_room(*need)
            count = workers if isinstance(workers, int) else f"{workers[0]} to {workers[1]}"
            self._terminal.say(f"{describe(run)}: starting {count} workers with Ray Train")
            labels = Labels(self._name, self._trial)
            with reporting_losses(*need):
                fit(self._store, run, workers, self._scale, self._train_callbacks(run), labels)

    def _progress(self, run: Training) -> AbstractContextManager[None]:
        """Context manager: show a run's epochs while it is trained."""
        return following(self._store, run, EpochLines(self._terminal, describe(run)))

    # Caches

    def _fill(self, job: CacheJob) -> bool:
        """Compute the views that a cache lacks. False, and the error is kept, where that fails.

        Raises `NoRoom` and `Unreachable`, which the other caches would raise, too.
        """
        try:
            if serving(self._store, job.run, job.views) == job.run:  # no wider cache has the views
                self._fill_missing(job)
        except (NoRoom, Unreachable):
            raise
        except RaykdError as error:
            self._errors.append(error)
            return False
        return True

    def _fill_missing(self, job: CacheJob) -> None:
        survey = functools.partial(
            CacheBuild, self._store, job.run, job.views, self._terminal.say
        )  # reads every shard of the cache once
        build, manifest = None, manifest_of(self._store, job.run)
        whole = manifest is not None and set(job.views) <= set(manifest.views())
        if self._survey:
            self._store.ensure_root()
            build = survey()
            whole = not build.missing
        if whole and self._store.has(job.run):
            return
        with self._held(job.run):
            manifest = manifest_of(self._store, job.run)
            if build is None or manifest is None or {*manifest.shards} != {*build.manifest.shards}:
                build = survey()  # another process may have filled it meanwhile
            started, rows, label = time.monotonic(), sum(map(len, build.missing)), _label(job.run)
            if rows:
                self._compute(build, label)
            elif self._store.has(job.run):
                return
            comparison = self._compared(build)
            seconds = time.monotonic() - started
            rate = f"{rows} rows in {clock(seconds)} ({rows / seconds:.0f} rows/s)"
            self._terminal.say(
                f"{label}: {rate if rows else 'all rows are there'}; "
                f"{comparison.rows} random ones asked again: largest difference of a number "
                f"{comparison.difference:.1g}"
                + (f", {comparison.lost:.2%} of the variance lost" if comparison.lost else "")
            )
            if rows:
                self._made.add(job.run)
                self._reused.discard(job.run)

    def _compute(self, build: CacheBuild, label: str) -> None:
        """Compute a cache's missing shards."""
        run, rows = build.run, sum(map(len, build.missing))
        check_room(self._store, needed_bytes(run, rows))
        task = self._terminal.task(label, rows, "row")
        units = [
            Unit("shard", (run, part), f"view {part.view}, rows {part.start} to {part.stop}")
            for part in build.parts(self._strategy(self._scale.workers).most)
        ]
        try:
            with contextlib.closing(self._run(units)) as results:
                for unit, shard in results:
                    build.add(shard)
                    task.update(task.done + len(unit.arguments[1]))
        finally:
            build.commit()

    def _compared(self, build: CacheBuild) -> Comparison:
        """Finish a cache once some rows are compared with the live teacher.

        One that is refused has no marker, so that the next command compares again.
        """
        check = Unit("compare", (build.run, SPOT_CHECK), "comparison with the live teacher")
        try:
            [(_, comparison)] = self._run([check])
        except RaykdError:
            build.withdraw()
            raise
        build.finish()
        return comparison

    def _run(self, units: Sequence[Unit]) -> Generator[tuple[Unit, Any], None, None]:
        """Do units; yields each that is done with its value, then raises the others' errors.

        In this process the first error ends it.
        """
        errors: list[RaykdError] = []
        strategy = self._strategy(self._scale.workers)
        with contextlib.closing(strategy.run(units, patient=True)) as events:
            for event in events:
                if event.state == "done":
                    yield event.unit, event.value
                elif event.error is not None:
                    errors.append(event.error)
                    if self._scale.workers == 0:
                        break
        if errors:
            raise folded(errors)

    # Searches

    def _decide(self, search: Search, stage: StudentRun | None) -> bool:
        """Choose a search's next anchor where its stage is trained; True if stages are left."""
        if not self._students:
            return False
        with self._collecting():
            if is_found(self._store, search) or (stage and not self._store.has(stage)):
                return False
            if self._store.has(search):
                lost = self._store.where(self._store.path(search) / DECISIONS)
                self._terminal.say(f"{lost} of a finished search is missing; it measures anew")
            student = search.student
            with self._held(search):
                unit = Unit("decide", (search,), f"the next anchor of {describe(student)}")
                [_] = self._run([unit])
            decisions = read_decisions(self._store, search)
            route = ", ".join(map(str, anchors_of(search, decisions)))
            self._terminal.say(f"anchors of {student.method.label} {student.model} so far: {route}")
            return not is_complete(search, decisions)
        return False

    # Messages

    def _say_accuracy(self, teachers: Iterable[TeacherRun]) -> None:
        """Say how often teachers are right, before students learn from them."""
        if self._terminal.console.quiet:
            return
        for teacher in teachers:
            if self._store.has(teacher):
                with self._collecting():
                    for line in filter(None, teacher_said(self._store, teacher)):
                        self._terminal.say(line)

    def _announce(self, work: Plan) -> None:
        """Say how much there is to train."""
        missing = [run for run in self._trained(work) if not self._store.has(run)]
        given = sum(isinstance(run, TeacherRun) and run.is_given for run in missing)
        counts = _counts(missing)
        counts["teachers"] -= given
        todo = ", ".join(counted(count, kind) for kind, count in counts.items() if count)
        reused = _counts(self._reused)
        there = ", ".join(counted(n, kind) for kind, n in reused.items() if kind != "caches")
        loaded = f"; given: {counted(given, 'teachers')}" if given else ""
        self._terminal.say(f"to train: {todo or 'nothing'}{loaded}; in the store: {there}")

    # Locks, strategies, the cluster

    @contextlib.contextmanager
    def _held(self, recipe: Recipe) -> Iterator[None]:
        """Hold an artefact's lock; where another process holds it, wait.

        While waiting, the pool is closed, because the other process may need its processors.
        """
        with self._lock(recipe, wait=False) as held:
            if held:
                yield
                return
        self._close_pool()
        with self._lock(recipe):
            yield

    def _strategy(self, workers: Workers) -> Strategy:
        """This process for 0 workers, else the pool."""
        if workers == 0:
            if self._local is None:
                labels = Labels(self._name, self._trial)
                self._local = Local(
                    ArtefactMaker(self._store, self._scale, self._notice, self._loggers, labels)
                )
            return self._local
        if self._pool is None:
            self._connect(1)
            self._store.ensure_root()
            from raykd.launch.pool import Pool, artefact_maker

            url, scale, name = self._store.url, self._scale, self._name
            plugins = loaded()  # unpickled with the rest, which loads them there
            pool = Pool(
                lambda: artefact_maker(url, scale, name, plugins), scale, self._terminal.say
            )
            self._pool = self._stack.enter_context(pool)
        return self._pool

    def _close_pool(self) -> None:
        if self._pool is not None:
            self._pool.__exit__()
            self._pool = None

    def _connect(self, processors: int) -> None:
        """Join or start a Ray cluster, once."""
        if not self._connected:
            from raykd.launch.cluster import connected

            self._stack.enter_context(connected(self._scale, self._terminal.say, processors))
            self._connected = True

    @contextlib.contextmanager
    def _collecting(self) -> Iterator[None]:
        """Keep an error of ours for later, so that other work goes on."""
        try:
            yield
        except RaykdError as error:
            self._errors.append(error)


def describe(run: Training) -> str:
    """A run in a few words, with the start of its fingerprint."""
    what = "teacher" if isinstance(run, TeacherRun) else run.method.label
    return f"{what} {run.model or 'of the teacher'} seed {run.seed} ({fingerprint(run)[:8]})"


def _counts(recipes: Iterable[Any]) -> dict[str, int]:
    """The number of recipes of each kind."""
    kinds = [recipe.kind for recipe in recipes]
    return {kind: kinds.count(kind) for kind in KINDS}


def _label(run: OutputsRun) -> str:
    """A cache in a few words."""
    outputs = "logits" if run.logits else "embeddings" if run.embedding else "maps"
    return f"cache of {run.teacher.model}'s {run.split} {outputs}, epoch {run.anchor}"
