"""Angular distillation: the direction of the teacher's embedding, and not its length.

Shapes: B batch, D student's embedding width, E teacher's.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.methods.base import Schedule
from raykd.methods.embedding_map import MappedSpotMethod, mapped


class Angular(MappedSpotMethod):
    """weight * mean over samples of (1 - cos(P student, teacher))**power, on embeddings.

    ShrinkTeaNet, Duong et al. 2019, arXiv 1905.10620; its authors' code has power 1 and weight 1
    beside a margin loss. The paper's maps of earlier stages are not compared. P is a linear map
    where the widths differ, which is our choice.
    """

    title: ClassVar[str] = "Duong et al. 2019, arXiv 1905.10620"
    cost: ClassVar[str] = "B D"

    name: Literal["angular"] = "angular"
    weight: Schedule = 1.0
    power: int = Field(default=1, ge=1, le=2)
    """Power of 1 - cosine."""

    def spot_loss(self, student: Tensor, teacher: Tensor, helpers: nn.ModuleDict) -> Tensor:
        """The mean of the power over samples."""
        student = mapped(student, helpers)
        return (1 - F.cosine_similarity(student, teacher, dim=1)).pow(self.power).mean()
