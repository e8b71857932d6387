"""Tasks: label losses, metrics, and the number by which students are compared.

Imports `core`, `methods` and `data`. Begin with `base.py`; a task is a file and a line here.
`probes.py` and `rankings.py` judge embeddings by labels, `verification.py` those of faces, and
`alignment.py` by those of a teacher.
"""

from typing import Annotated, Union

from pydantic import Field

from raykd.core.open_union import Open
from raykd.core.registry import Registry
from raykd.tasks.base import LabelledSet, Task, probe_of
from raykd.tasks.classification import Classification
from raykd.tasks.faces import Faces, FaceSet
from raykd.tasks.features import Features, Probe
from raykd.tasks.retrieval import Retrieval, RetrievalSet

__all__ = [
    "TASKS",
    "AnyTask",
    "Classification",
    "FaceSet",
    "Faces",
    "Features",
    "LabelledSet",
    "Probe",
    "Retrieval",
    "RetrievalSet",
    "Task",
    "probe_of",
]

TASKS: Registry[type[Task]] = Registry("task")
TASKS.add("classification", Classification)
TASKS.add("features", Features)
TASKS.add("retrieval", Retrieval)
TASKS.add("faces", Faces)

# Pydantic reads this union; pyright cannot see its members, and need not.
_Members = Union[tuple(TASKS.values())]  # noqa: UP007
AnyTask = Annotated[_Members, Field(discriminator="name"), Open(TASKS)]
