"""Costs of an experiment, and the savings from sharing teachers and caches."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raykd.core.errors import DataError
from raykd.data.dataset import open_split
from raykd.data.recipe import Data, Split
from raykd.data.transforms.augment import Augment
from raykd.planning.plan import Plan, plan
from raykd.recipes import AnyStudent, Search, SearchedStudent, StudentRun, TeacherRun
from raykd.report.types import Cost, Run, Shared
from raykd.storage.store import Store
from raykd.training.inputs import served
from raykd.training.route_results import measures

_AT_ONCE = 8  # manifests that are read at a time


def cost_of(
    store: Store,
    work: Plan,
    students_of: Mapping[AnyStudent, StudentRun | None],
    search_students: Mapping[Search, Sequence[StudentRun]],
    runs_of: Mapping[Any, Run],
) -> Cost:
    """Costs of `work`: sizes of its caches, time of its finished runs, and savings by sharing.

    `students_of` maps what the experiment asks for to its student, None where the route is still
    to be found; `search_students` are those that a search has trained; `runs_of` maps a recipe to
    its state in the store.
    """
    caches = _Caches(store, work)
    results = {
        run: result
        for run in (*work.teachers, *work.preludes, *work.students)
        if (result := runs_of[run].result) is not None
    }
    hours: dict[str, float] = {}
    for result in results.values():
        spent = result["seconds"] * result.get("workers", 1) / 3600
        hours[result["hardware"]] = hours.get(result["hardware"], 0.0) + spent
    students = [run for run in work.students if run in results]
    done = [run for run, student in students_of.items() if student in results]
    together = _needed(done, students_of, search_students)
    alone = [_needed([run], students_of, search_students) for run in done]
    shared = (
        Shared("teacher forwards", caches.outputs(together), sum(map(caches.outputs, alone))),
        Shared(
            "trainings of teachers and assistants",
            len(_teachers(together)),
            sum(len(_teachers(work)) for work in alone),
        ),
        Shared(
            "trainings of stages and preludes",
            _before(together, [students_of[run] for run in done]),
            sum(_before(work, [students_of[run]]) for run, work in zip(done, alone, strict=True)),
        ),
    )
    return Cost(
        forwards=caches.forwards,
        bytes=caches.bytes,
        epochs=sum(run.optim.epochs for run in students if run.cached() and run.method.needs()),
        teacher_seconds=sum(results[run]["seconds"] for run in work.teachers if run in results),
        student_seconds=sum(results[run]["seconds"] for run in students),
        shared=shared,
        hours=hours,
    )


class _Caches:
    """Sizes of the caches of some work, and numbers of rows of the splits."""

    def __init__(self, store: Store, work: Plan) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # in a store elsewhere, each is a request
            manifests = dict(pool.map(lambda job: served(store, job.run, job.views), work.caches))
        self._store = store
        self._rows: dict[tuple[Data, Split], int] = {}
        self.forwards = self.bytes = 0
        for cache, manifest in manifests.items():
            if manifest is not None:
                self._rows[_images(cache.data, cache.split)] = manifest.rows
                self.forwards += sum(len(shard.part) for shard in manifest.shards)
                self.bytes += sum(shard.bytes for shard in manifest.shards)

    def outputs(self, work: Plan) -> int:
        """Number of images that its teachers answer for, from caches and live."""
        cached = sum(
            len(job.views) * self._count(job.run.data, job.run.split) for job in work.caches
        )
        trained = (*work.students, *(prelude.training() for prelude in work.preludes))
        return cached + sum(
            run.optim.epochs
            * len(run.method.looks().teacher)
            * len(run.members())
            * self._count(run.data, "train")
            for run in trained
            if run.method.needs() and not run.cached()
        )

    def _count(self, data: Data, split: Split) -> int:
        """The rows of a split; 0 where neither a cache nor its images are in the store."""
        key = _images(data, split)
        if key not in self._rows:
            try:
                self._rows[key] = len(open_split(self._store, data, split))
            except DataError:
                self._rows[key] = 0
        return self._rows[key]


def _images(data: Data, split: Split) -> tuple[Data, Split]:
    """Key of the data that the rows of a split depend on."""
    return data.model_copy(update={"augment": Augment()}), split


def _needed(
    runs: Sequence[AnyStudent],
    students_of: Mapping[AnyStudent, StudentRun | None],
    search_students: Mapping[Search, Sequence[StudentRun]],
) -> Plan:
    """Runs that finished students needed, with the searches for their routes."""
    searches = [run.search for run in runs if isinstance(run, SearchedStudent)]
    students = [student for run in runs if (student := students_of[run]) is not None]
    students += [stage for search in searches for stage in search_students[search]]
    return plan(students, caches=[cache for search in searches for cache in measures(search)])


def _teachers(work: Plan) -> list[TeacherRun | StudentRun]:
    """The teachers that are trained, and the assistants."""
    trained = [teacher for teacher in work.teachers if not teacher.is_given]
    members = (teacher for run in work.students for teacher in run.members())
    assistants = (teacher for teacher in members if isinstance(teacher, StudentRun))
    return [*trained, *dict.fromkeys(assistants)]


def _before(work: Plan, lines: Sequence[StudentRun | None]) -> int:
    """Number of trainings before the requested ones, without teachers'."""
    apart = dict.fromkeys((*lines, *_teachers(work)))
    return len([run for run in work.students if run not in apart]) + len(work.preludes)
