"""The linear map P of a student's embedding into the teacher's space, as a helper of a method.

Shapes: B batch, D student's embedding width, E teacher's.
"""

from typing import ClassVar

from torch import Tensor, nn

from raykd.core.types import Shapes
from raykd.methods.base import SpotMethod

PROJECTION = "projection"  # its name among the helpers


def embedding_map(student: Shapes, teacher: Shapes) -> nn.ModuleDict:
    """The map, where the widths differ."""
    if student.embedding == teacher.embedding:
        return nn.ModuleDict()
    return nn.ModuleDict({PROJECTION: nn.Linear(student.embedding, teacher.embedding)})


def mapped(embedding: Tensor, helpers: nn.ModuleDict) -> Tensor:
    """The student's embedding [B, D] in the teacher's space [B, E]."""
    return helpers[PROJECTION](embedding) if PROJECTION in helpers else embedding


class MappedSpotMethod(SpotMethod):
    """A loss of embeddings behind the linear map. Abstract."""

    matches: ClassVar[bool] = True

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The linear map, where the widths differ."""
        return embedding_map(student, teacher)
