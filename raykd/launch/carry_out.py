"""Carrying out a plan: teachers, caches, preludes, students, each only if it is not there yet.

A student may need another one first: the assistant that teaches it, or the stage before. And the
route of a greedy search is found stage by stage, so work is done in rounds until none is left.
"""

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from raykd.config.experiment import Experiment
from raykd.config.scale import Workers
from raykd.core.errors import RaykdError, folded
from raykd.launch.executor import Crew, collected
from raykd.launch.peer_locks import Company
from raykd.planning.plan import CacheJob, Plan, plan
from raykd.planning.preflight import check_disk, preflight
from raykd.recipes import LogitsRun, Search, Sought, StudentRun, TeacherRun, Training
from raykd.storage.store import Store
from raykd.tracking.console import Teller
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

KINDS = ("teachers", "caches", "preludes", "students")


@dataclass(frozen=True)
class Outcome:
    """What a call did, and what it found done."""

    made: dict[str, int]  # kind -> how many artefacts
    reused: dict[str, int]
    seconds: float


def carry_out(
    experiment: Experiment,
    store: Store,
    teller: Teller,
    *,
    students: bool = True,
    company: Company | None = None,
) -> Outcome:
    """Make every artefact of a resolved experiment that the store lacks.

    With `students` False it stops after the caches. Nothing is begun where a part of it cannot be
    done: see `preflight`. What is finished stays finished: a call
    that was interrupted is continued by the same call. A failure does not stop what can do
    without it; the errors are raised at the end, as one.
    """
    started = time.monotonic()
    preflight(experiment, store)
    if company is None or not company.shared:  # others may be filling the same caches
        check_disk(experiment, store)
    with contextlib.ExitStack() as stack:
        crew = Crew(experiment, store, teller, stack, company or Company(store, teller.say))
        site = _Site(experiment, store, teller, crew, students)
        with collected(site.errors):  # with those that were kept before
            _in_rounds(site, experiment)
    site.raise_errors()
    return Outcome(site.counts(site.made), site.counts(site.reused), time.monotonic() - started)


def _in_rounds(site: "_Site", experiment: Experiment) -> None:
    """Make the students whose route is known, and find the routes of the others on the way."""
    stages = {search: site.next_stage(search) for search in experiment.searches()}
    measured = [cache for search, stage in stages.items() if stage for cache in measures(search)]
    runs: list[StudentRun] = [*experiment.students()]
    while True:
        runs += [stage for stage in stages.values() if stage is not None]
        runs += site.found(experiment)
        site.make(runs, measured)
        going_on = [search for search, stage in stages.items() if site.decide(search, stage)]
        if not (site.students and stages):
            return
        stages = {search: site.next_stage(search) for search in going_on}
        runs, measured = [], []


@dataclass
class _Site:
    """Where artefacts are made, and what became of them."""

    experiment: Experiment
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

    def found(self, experiment: Experiment) -> list[StudentRun]:
        """The students whose route a search has found."""
        students = []
        for run in experiment.runs:
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
        experiment, has = self.experiment, self.store.has
        self._train([(run, experiment.teacher_workers(run)) for run in layer.teachers])
        self._say_how_good(layer.teachers)
        caches = [job for job in layer.caches if has(job.run.teacher)]
        failed: dict[CacheJob, RaykdError] = {}
        filled = [job.run for job in self.crew.precompute(caches, failed)]
        self.errors += failed.values()
        self.made.update(filled)
        self.reused.difference_update(filled)
        if self.students:
            able = [run for run in layer.preludes if has(run.teacher)]
            self._train([(run, experiment.workers(run)) for run in able])
            empty = [job.run for job in failed]
            ready = [run for run in layer.students if self._is_ready(run, empty)]
            self._train([(run, experiment.workers(run)) for run in ready])

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
