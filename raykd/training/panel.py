"""The teachers of a run as one source."""

from collections.abc import Sequence

from raykd.recipes import PanelRun, StudentRun
from raykd.teachers.source import PanelTeacher, Source


def together(run: StudentRun, members: Sequence[Source]) -> Source:
    """The sources of all members of a run's panel as one; that of a single teacher itself."""
    if not isinstance(run.teacher, PanelRun):
        (teacher,) = members
        return teacher
    return PanelTeacher(members, run.teacher.combine, run.teacher.shares)
