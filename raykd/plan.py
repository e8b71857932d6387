"""What a set of students needs, each thing once. Pure: no files, no Ray."""

from collections.abc import Iterable
from dataclasses import dataclass

from raykd.recipes import LogitsRun, PreludeRun, StudentRun, TeacherRun


@dataclass(frozen=True)
class CacheJob:
    """A cache, and the views of it that some epoch of some student reads."""

    run: LogitsRun
    views: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Distinct teachers, caches and students, in the order in which they can be made."""

    teachers: tuple[TeacherRun, ...]
    caches: tuple[CacheJob, ...]
    preludes: tuple[PreludeRun, ...]
    students: tuple[StudentRun, ...]


def plan(runs: Iterable[StudentRun]) -> Plan:
    """The distinct work behind some students.

    A cache holds only the (anchor, view) pairs that an epoch reads, so a route with many
    anchors needs no more teacher forwards than plain distillation. Where some students read
    embeddings beside the logits, the others read the logits of the same cache.
    """
    students = tuple(dict.fromkeys(runs))
    teachers = dict.fromkeys(run.teacher for run in students if run.teacher is not None)
    views: dict[LogitsRun, set[int]] = {}
    for run in students:
        test = run.test_logits()
        if test is not None:
            views.setdefault(test, set()).add(0)
        if run.cached() and run.method.needs():
            for look in run.method.looks().teacher:
                for epoch in range(run.optim.epochs):
                    views.setdefault(run.logits_at(epoch, look), set()).add(run.view_at(epoch))
    for run in list(views):
        wider = run.wider()
        if wider != run and wider in views:
            views[wider] |= views.pop(run)  # the teacher answers once, for all its students
    caches = tuple(CacheJob(run, tuple(sorted(seen))) for run, seen in views.items())
    preludes = dict.fromkeys(before for run in students if (before := run.prelude()) is not None)
    return Plan(tuple(teachers), caches, tuple(preludes), students)
