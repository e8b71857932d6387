"""The plan: all that a set of students needs, each thing once. Pure: no files, no Ray."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from raykd.recipes import AnyTeacher, OutputsRun, PreludeRun, StudentRun, TeacherRun


@dataclass(frozen=True)
class CacheJob:
    """A cache, and the views of it that some epoch of some student reads."""

    run: OutputsRun
    views: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Distinct teachers, caches, preludes and students.

    Of the students, those that others go on after or learn from come before those.
    """

    teachers: tuple[TeacherRun, ...]
    caches: tuple[CacheJob, ...]
    preludes: tuple[PreludeRun, ...]
    students: tuple[StudentRun, ...]

    def behind_caches(self) -> tuple[PreludeRun, ...]:
        """The preludes that caches are computed by, and so come before them."""
        return tuple(dict.fromkeys(p for job in self.caches if (p := job.run.prelude) is not None))

    def layers(self) -> list["Plan"]:
        """The work in parts, each of which needs nothing but the parts before it."""
        depths = {student: depth(student) for student in self.students}
        count = 1 + max(depths.values(), default=0)
        return [
            replace(
                self,
                teachers=self.teachers if number == 0 else (),
                caches=tuple(j for j in self.caches if _readiness(j.run.teacher) == number),
                preludes=tuple(p for p in self.preludes if _readiness(p.teacher) == number),
                students=tuple(run for run in self.students if depths[run] == number),
            )
            for number in range(count)
        ]


def plan(
    runs: Iterable[StudentRun],
    finished: Callable[[StudentRun], bool] = lambda run: False,
    caches: Iterable[OutputsRun] = (),
) -> Plan:
    """The distinct work behind some students, and the first view of `caches` beside them.

    Those that are `finished`, and what only they need, are left out.

    A cache holds only the (anchor, view) pairs that an epoch reads, so a route with many
    anchors needs no more teacher forwards than plain distillation. Where some students read
    embeddings beside the logits, the others read the logits of the same cache.
    """
    students = tuple(dict.fromkeys(student for run in runs for student in lineage(run, finished)))
    caches = tuple(caches)
    taught = [teacher for run in students for teacher in run.members()]
    everyone = dict.fromkeys(taught + [run.teacher for run in caches])
    teachers = tuple(teacher for teacher in everyone if isinstance(teacher, TeacherRun))
    views: dict[OutputsRun, set[int]] = {cache: {0} for cache in caches}
    for run in students:
        for judging in (run.test_caches(), *run.probe_caches().values()):
            for cache in judging:
                views.setdefault(cache, set()).add(0)
        if run.cached() and run.method.needs():
            for look in run.method.looks().teacher:
                for epoch in range(run.optim.epochs):
                    for cache in run.caches_at(epoch, look):
                        views.setdefault(cache, set()).add(run.view_at(epoch))
    for run in list(views):
        wider = run.wider()
        if wider != run and wider in views:
            views[wider] |= views.pop(run)  # the teacher answers once, for all its students
    jobs = tuple(CacheJob(run, tuple(sorted(seen))) for run, seen in views.items())
    preludes = dict.fromkeys(before for run in students if (before := run.prelude()) is not None)
    return Plan(teachers, jobs, tuple(preludes), students)


def depth(run: StudentRun) -> int:
    """Number of students that have to be finished in turn before this one can begin."""
    after = 0 if run.after is None else depth(run.after) + 1
    return max(after, *map(_readiness, run.members()), 0)


def _readiness(teacher: AnyTeacher) -> int:
    """The layer in which a teacher's answers can be asked for."""
    return depth(teacher) + 1 if isinstance(teacher, StudentRun) else 0


def lineage(
    run: StudentRun, finished: Callable[[StudentRun], bool] = lambda run: False
) -> Iterator[StudentRun]:
    """The students that one needs, each after those that it needs, and itself.

    Without those that are `finished`, and what is behind them.
    """
    if finished(run):
        return
    for before in (*run.members(), run.after):
        if isinstance(before, StudentRun):
            yield from lineage(before, finished)
    yield run
