"""Carrying out a plan: teachers, caches, preludes, students, each only if it is not there yet.

A student may need another one first: the assistant that teaches it, or the stage before. And the
route of a greedy search is found stage by stage, so work is done in rounds until none is left.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale, Workers, most
from raykd.core.errors import RaykdError, folded
from raykd.core.record import Recipe
from raykd.core.shutdown import Notice, noticed
from raykd.launch.crew import Crew, collected
from raykd.launch.peer_locks import Company
from raykd.planning.plan import CacheJob, Plan, plan
from raykd.planning.preflight import check_disk, preflight
from raykd.recipes import Asked, LogitsRun, Search, Sought, StudentRun, TeacherRun, Training
from raykd.storage import locks
from raykd.storage.store import Store
from raykd.tracking.console import Teller
from raykd.tracking.logger import Logger
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

KINDS = ("teachers", "caches", "preludes", "students")


@dataclass(frozen=True)
class Outcome:
    """What a call did, and what it found done."""

    made: dict[str, int]  # kind -> how many artefacts
    reused: dict[str, int]
    seconds: float


class Executor:
    """Makes artefacts that a store lacks, each once, in the order in which they need each other.

    A training runs in this process with 0 workers, in a pool of reused Ray workers with 1, on Ray
    Train with more. Caches and the decisions of searches go to this process where `scale.workers`
    is 0, else to the pool.
    """

    def __init__(
        self,
        store: Store,
        scale: Scale,
        teller: Teller,
        *,
        name: str = "",
        trial: str | None = None,
        workers: Callable[[Training], Workers] | None = None,
        lock: locks.Lock | None = None,
        notice: Callable[[], AbstractContextManager[Notice]] = noticed,
        loggers: Sequence[Logger] = (),
        train_callbacks: Callable[[Training], "list[UserCallback]"] = lambda run: [],
        survey: bool = True,
    ) -> None:
        """Everything after `teller` has a default that suits a driver; trials of a sweep differ.

        name, trial: labels of the metrics.
        workers: number of workers of a training; by default what `scale` says.
        lock: keeps others from making an artefact meanwhile; by default the store's file locks.
        notice: notice of a shutdown, for trainings in this process.
        loggers: further loggers of trainings in this process.
        train_callbacks: callbacks for Ray Train's controller, for trainings with several workers.
        survey: read every shard of a cache once; False where the manifest is to be trusted.
        """
        self._store, self._scale, self._teller = store, scale, teller
        self._workers = workers or self._workers_by_scale
        self._name, self._survey = name, survey
        self._lock = lock or _StoreLock(store, teller.say)
        self._company = _Company(
            store, teller.say, self._lock, notice, loggers, train_callbacks, trial, not survey
        )

    def make(self, runs: Iterable[Asked], *, students: bool = True) -> Outcome:
        """Make students with all that they need; with `students` False stop after their caches.

        What is finished stays finished: a call that was interrupted is continued by the same call.
        A failure does not stop what can do without it; the errors are raised at the end, as one.
        """
        started, runs = time.monotonic(), tuple(runs)
        with contextlib.ExitStack() as stack:
            crew = Crew(self._name, self._scale, self._store, self._teller, stack, self._company)
            site = _Site(self._workers, self._store, self._teller, crew, students)
            with collected(site.errors):  # with those that were kept before
                _in_rounds(site, runs)
        site.raise_errors()
        return Outcome(site.counts(site.made), site.counts(site.reused), time.monotonic() - started)

    def _workers_by_scale(self, run: Training) -> Workers:
        """The number of workers that `scale` gives a training, without its rules."""
        given = self._scale.teacher_workers if isinstance(run, TeacherRun) else None
        workers = self._scale.workers if given is None else given
        given_weights = isinstance(run, TeacherRun) and run.weights is not None
        return min(most(workers), 1) if given_weights else workers


def execute(
    experiment: Experiment, store: Store, teller: Teller, *, students: bool = True
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

    executor = Executor(store, experiment.scale, teller, name=experiment.name, workers=workers)
    return executor.make(experiment.runs, students=students)


@dataclass(frozen=True)
class _StoreLock:
    """File locks of the store, common to all processes that see its folder."""

    store: Store
    say: Callable[[str], None]

    def __call__(self, recipe: Recipe, *, wait: bool = True) -> AbstractContextManager[bool]:
        return locks.held(self.store, recipe, "maker", self.say, wait=wait)


class _Company(Company):
    def __init__(self, store, say, lock, notice, loggers, callbacks, trial, shared) -> None:
        super().__init__(store, say)
        self._lock, self.noticing, self.loggers = lock, notice, loggers
        self.callbacks, self.trial, self.shared = callbacks, trial, shared

    def claiming(self, recipe):
        return self._lock(recipe)

    def trying(self, recipe):
        return self._lock(recipe, wait=False)


def _in_rounds(site: "_Site", asked: Sequence[Asked]) -> None:
    """Make the students whose route is known, and find the routes of the others on the way."""
    searches = dict.fromkeys(run.search for run in asked if isinstance(run, Sought))
    stages = {search: site.next_stage(search) for search in searches}
    measured = [cache for search, stage in stages.items() if stage for cache in measures(search)]
    runs: list[StudentRun] = [run for run in asked if isinstance(run, StudentRun)]
    while True:
        runs += [stage for stage in stages.values() if stage is not None]
        runs += site.found(asked)
        site.make(runs, measured)
        going_on = [search for search, stage in stages.items() if site.decide(search, stage)]
        if not (site.students and stages):
            return
        stages = {search: site.next_stage(search) for search in going_on}
        runs, measured = [], []


@dataclass
class _Site:
    """Where artefacts are made, and what became of them."""

    workers: Callable[[Training], Workers]
    store: Store
    teller: Teller
    crew: Crew
    students: bool  # whether students are to be trained, too
    made: set[Any] = field(default_factory=set)  # recipes
    reused: set[Any] = field(default_factory=set)
    errors: list[RaykdError] = field(default_factory=list)

    def make(self, runs: Sequence[StudentRun], caches: Iterable[LogitsRun] = ()) -> None:
        """Make some students and what they need; failures are kept for later."""
        runs, caches = tuple(dict.fromkeys(runs)), tuple(caches)
        # What is there already counts as reused, and so does what it was made from.
        everything = plan(runs, caches=caches)
        done = [*everything.teachers, *(everything.students if self.students else ())]
        done += everything.preludes if self.students else ()
        self._mark_again(done)
        work = plan(runs, self.store.has if self.students else lambda run: False, caches)
        self.reused.update(run for run in done if self.store.has(run) and run not in self.made)
        self.reused.update(job.run for job in everything.caches if job.run not in self.made)
        self._announce(work)
        for layer in work.layers():
            self._make_layer(layer)

    def next_stage(self, search: Search) -> StudentRun | None:
        """The stage that a search has to train next; None where it is over, or cannot go on."""
        with collected(self.errors):
            return next_stage(self.store, search)
        return None

    def found(self, asked: Sequence[Asked]) -> list[StudentRun]:
        """The students whose route a search has found."""
        students = []
        for run in asked:
            with collected(self.errors):
                students.append(route_found(self.store, run) if isinstance(run, Sought) else None)
        return [student for student in students if student is not None]

    def decide(self, search: Search, stage: StudentRun | None) -> bool:
        """Choose a search's next anchor, where its stage is trained; whether it is to go on."""
        if not self.students:
            return False
        with collected(self.errors):
            if is_found(self.store, search) or (stage and not self.store.has(stage)):
                return False
            if self.store.has(search):
                lost = self.store.where(self.store.path(search) / DECISIONS)
                self.teller.say(f"{lost} of a finished search is missing; it measures anew")
            self.crew.decide(search)
            decisions = read_decisions(self.store, search)
            route = ", ".join(map(str, anchors_of(search, decisions)))
            student = search.student
            self.teller.say(f"anchors of {student.method.label} {student.model} so far: {route}")
            return not is_complete(search, decisions)
        return False

    def counts(self, recipes: set[Any]) -> dict[str, int]:
        """How many artefacts of each kind are among those that were made, or reused."""
        return {kind: sum(recipe.kind == kind for recipe in recipes) for kind in KINDS}

    def raise_errors(self) -> None:
        """Raise what went wrong, if anything did."""
        if self.errors:
            raise folded(self.errors)

    def _make_layer(self, layer: Plan) -> None:
        """Make what needs nothing that is not there."""
        workers, has = self.workers, self.store.has
        self._train([(run, workers(run)) for run in layer.teachers])
        self._say_how_good(layer.teachers)
        caches = [job for job in layer.caches if has(job.run.teacher)]
        failed: dict[CacheJob, RaykdError] = {}
        filled = [job.run for job in self.crew.precompute(caches, failed)]
        self.errors += failed.values()
        self.made.update(filled)
        self.reused.difference_update(filled)
        if self.students:
            able = [run for run in layer.preludes if has(run.teacher)]
            self._train([(run, workers(run)) for run in able])
            empty = [job.run for job in failed]
            ready = [run for run in layer.students if self._is_ready(run, empty)]
            self._train([(run, workers(run)) for run in ready])

    def _say_how_good(self, teachers: Iterable[TeacherRun]) -> None:
        """Say how often teachers are right, before students learn from them."""
        if self.teller.console.quiet:
            return
        for teacher in teachers:
            if self.store.has(teacher):
                with collected(self.errors):
                    for line in filter(None, teacher_said(self.store, teacher)):
                        self.teller.say(line)

    def _mark_again(self, runs: Iterable[Training]) -> None:
        """Finish what is whole but for its marker, though all that needs it may be there."""
        for run in runs:
            with collected(self.errors):
                if not self.store.has(run) and finish_again(self.store, run):
                    self.teller.say(
                        f"{self.store.where(self.store.path(run))} is whole but for its marker, "
                        "which is written again; nothing is trained"
                    )

    def _train(self, jobs: Sequence[tuple[Training, Workers]]) -> None:
        """Train what is not there yet."""
        missing = [(run, workers) for run, workers in jobs if not self.store.has(run)]
        with collected(self.errors):
            if missing:
                self.crew.train(missing)
        self.made.update(run for run, _ in missing if self.store.has(run))

    def _is_ready(self, run: StudentRun, empty: Sequence[LogitsRun]) -> bool:
        """Whether what a student needs is there; it failed otherwise, and was said to.

        `empty` are caches that could not be filled.
        """
        needed = (run.teacher, run.after, run.prelude())
        if not all(self.store.has(one) for one in needed if one is not None):
            return False
        caches = plan([run]).caches if empty else ()
        return not any(job.run in empty or job.run.wider() in empty for job in caches)

    def _announce(self, work: Plan) -> None:
        """Say what there is to do."""
        kinds = {"teachers": work.teachers, "preludes": work.preludes, "students": work.students}
        if not self.students:
            kinds = {"teachers": work.teachers}
        missing = {
            kind: sum(not self.store.has(run) for run in runs) for kind, runs in kinds.items()
        }
        todo = ", ".join(f"{count} {kind}" for kind, count in missing.items() if count)
        found = {
            kind: count for kind, count in self.counts(self.reused).items() if kind != "caches"
        }
        there = ", ".join(f"{count} {kind}" for kind, count in found.items())
        self.teller.say(f"to train: {todo or 'nothing'}; in the store: {there}")
