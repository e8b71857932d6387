"""The work that an experiment still needs, with its size and its time."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from raykd.config.experiment import Experiment
from raykd.core.text_table import as_text, table_of
from raykd.planning.estimate import Item, estimate
from raykd.planning.given_teachers import GivenTeacher, given_teachers
from raykd.planning.plan import Plan
from raykd.planning.plan import plan as plan_of
from raykd.planning.preflight import preflight
from raykd.planning.rehearsal import Rehearsal, few_views, rehearse
from raykd.storage.store import Store
from raykd.tracking.console import clock
from raykd.training.cache_builder import check_room
from raykd.training.route_results import plannable


@dataclass(frozen=True)
class Remaining:
    """The work that the store lacks. Times and sizes are measured when they are first read."""

    experiment: Experiment
    store: Store
    plan: Plan  # the teachers, caches, preludes and students that are missing
    missing: int  # students
    total: int

    @cached_property
    def items(self) -> list[Item]:
        """One line per kind of work: images to answer, bytes to write, seconds on this machine."""
        return estimate(self.experiment, self.store, self.plan)

    @cached_property
    def given_teachers(self) -> list[GivenTeacher]:
        """Teachers with published or given weights, and what the students' images are to them."""
        return given_teachers(self.experiment, self.store)

    @property
    def forwards(self) -> int:
        """Images that teachers have to answer."""
        return sum(item.forwards for item in self.items)

    @property
    def bytes(self) -> int:
        """Bytes to be written."""
        return sum(item.bytes for item in self.items)

    @property
    def seconds(self) -> float:
        """Expected time on workers like this machine."""
        return sum(item.seconds for item in self.items)

    @property
    def advice(self) -> dict[str, int]:
        """`run.views` where fewer would do: of students that read their caches alone."""
        return few_views(self.experiment) if self.missing else {}

    def rehearse(self, say: Callable[[str], None] = lambda text: None) -> Rehearsal:
        """Time every way of running its networks on this machine, and choose the fastest.

        `say` is called with a line for each.
        """
        return rehearse(self.experiment, self.store, say)

    def __str__(self) -> str:
        """A table of the work, and what it amounts to."""
        lines = [f"given teacher {teacher.sentence()}" for teacher in self.given_teachers]
        if self.items:
            rows = [_row(item) for item in self.items]
            lines.append(as_text(table_of(rows, ("to do", "what"))))
        lines.append(
            f"{self.total - self.missing} of {self.total} students are in the store; "
            f"to do: {self.forwards:,} teacher forwards, {self.bytes / 1e6:.1f} MB of cache, about "
            f"{clock(self.seconds)} on workers like this machine"
        )
        space = self.experiment.space
        if space is not None and space.search:
            draws = space.sweep.samples
            lines.append(f"these are one of each; a sweep draws {draws}, with values that vary")
        for search in self.experiment.searches():
            lines.append(
                f"beside these, a search for anchors of {search.student.method.label} "
                f"{search.student.model}: a training like the first for each anchor that it "
                f"chooses, up to {len(search.candidates())}"
            )
        lines += [
            f"nothing else reads the cache of such a student: {key}: {views}, a quarter of its "
            "epochs, would save the teacher's other views; raykd plan --rehearse says how much"
            for key, views in self.advice.items()
        ]
        return "\n".join(lines)

    def check_room(self) -> None:
        """Raise `NoRoom` where its caches do not fit on the disk."""
        check_room(self.store, self.bytes)


def remaining(experiment: Experiment, store: Store) -> Remaining:
    """The remaining work of a resolved experiment. Raises what `preflight` does."""
    preflight(experiment, store)
    students, measured = plannable(store, experiment.runs)
    missing = [student for student in students if not store.has(student)]
    work = plan_of(students, store.has, measured)
    todo = [teacher for teacher in work.teachers if not store.has(teacher)]
    before = [prelude for prelude in work.preludes if not store.has(prelude)]
    work = replace(work, teachers=tuple(todo), preludes=tuple(before))
    return Remaining(experiment, store, work, len(missing), len(students))


def _row(item: Item) -> dict[str, str | int]:
    """Some work of one kind, as a row of the table."""
    return {
        "to do": item.kind,
        "what": item.label,
        "number": item.count,
        "teacher forwards": f"{item.forwards:,}" if item.forwards else "",
        "MB": f"{item.bytes / 1e6:.1f}" if item.bytes else "",
        "time": clock(item.seconds),
    }
