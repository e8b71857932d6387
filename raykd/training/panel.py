"""The teachers of a run as one source."""

from collections.abc import Sequence
from dataclasses import replace

from raykd.core.types import Shapes
from raykd.recipes import PanelRun, StudentRun
from raykd.teachers.source import PanelTeacher, Source


def of_panel(shapes: Sequence[Shapes]) -> Shapes:
    """The sizes of the first teacher's outputs, with those of each where they are several."""
    first, *others = shapes
    return replace(first, panel=tuple(shapes)) if others else first


def together(run: StudentRun, members: Sequence[Source], *, judged: bool = False) -> Source:
    """The sources of all members of a run's panel as one; that of a single teacher itself.

    `judged`: its outputs are what students are compared with: of members that are handed on whole
    the mean of their probabilities, or without labels the first one's embeddings.
    """
    if not isinstance(run.teacher, PanelRun):
        (teacher,) = members
        return teacher
    combine = run.teacher.combine
    if judged and combine == "none" and run.task.labelled:
        combine = "mean_probabilities"
    return PanelTeacher(members, combine, run.teacher.shares)
