"""Mimic learning: regression of the teacher's logits, or of its embeddings."""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.types import Batch, Shapes
from raykd.methods.base import LogitMethod, Schedule, SpotMethod


class MimicLogits(LogitMethod):
    """weight * mean (student - teacher)**2 over samples and classes.

    Ba and Caruana 2014, arXiv 1312.6184, equation 1. The weight is that of the public
    Knowledge-Distillation-Zoo.
    """

    title: ClassVar[str] = "Ba and Caruana 2014, arXiv 1312.6184"

    name: Literal["mimic_logits"] = "mimic_logits"
    weight: Schedule = 0.1

    def logit_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of the logits."""
        return F.mse_loss(student, teacher)


class MimicEmbedding(SpotMethod):
    """weight * mean over samples of |P student - teacher|**2, on embeddings.

    The mimic learning of route constrained optimisation (Jin et al. 2019, arXiv 1904.09149). P is
    a linear map where the widths differ, otherwise the identity; this and the weight are our
    choices.
    """

    title: ClassVar[str] = "Jin et al. 2019, arXiv 1904.09149"
    cost: ClassVar[str] = "B D"

    name: Literal["mimic_embedding"] = "mimic_embedding"
    weight: Schedule = 1.0

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The linear map, where the widths differ."""
        if student.embedding == teacher.embedding:
            return nn.ModuleDict()
        return nn.ModuleDict({"projection": nn.Linear(student.embedding, teacher.embedding)})

    def spot_loss(self, student: Tensor, teacher: Tensor, helpers: nn.ModuleDict) -> Tensor:
        """Squared distance of the embeddings, averaged over samples."""
        if "projection" in helpers:
            student = helpers["projection"](student)
        return F.mse_loss(student, teacher, reduction="sum") / len(student)
