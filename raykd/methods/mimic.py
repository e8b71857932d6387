"""Mimic learning: regress the teacher's logits, or its embedding.

Shapes: B batch, C classes, D embedding width.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at


class MimicLogits(Method):
    """weight * mean (student - teacher)**2 over samples and classes.

    Ba and Caruana 2014, arXiv 1312.6184, equation 1. The weight is that of the public
    Knowledge-Distillation-Zoo.
    """

    title: ClassVar[str] = "Ba and Caruana 2014, arXiv 1312.6184"

    name: Literal["mimic_logits"] = "mimic_logits"
    weight: Schedule = 0.1

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The mean squared difference, at the spot "logits"."""
        with full_precision(student.logits):
            loss = F.mse_loss(precise(student.logits), precise(teacher.logits))
            return {"logits": value_at(self.weight, batch.epoch) * loss}


class MimicEmbedding(Method):
    """weight * the mean over samples of |P student - teacher|**2, of pooled features.

    The mimic learning of route constrained optimisation (Jin et al. 2019, arXiv 1904.09149). P is
    a linear map where the widths differ, and nothing where they do not; that, and the weight, are
    decisions taken here.
    """

    title: ClassVar[str] = "Jin et al. 2019, arXiv 1904.09149"
    cost: ClassVar[str] = "B D"

    name: Literal["mimic_embedding"] = "mimic_embedding"
    weight: Schedule = 1.0

    def needs(self) -> Signal:
        """The embeddings."""
        return Signal.EMBEDDING

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The linear map, where the widths differ."""
        if student.embedding == teacher.embedding:
            return nn.ModuleDict()
        return nn.ModuleDict({"projection": nn.Linear(student.embedding, teacher.embedding)})

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The squared distance, at the spot "embedding"."""
        with full_precision(student.embedding):
            mine, theirs = precise(student.embedding), precise(teacher.embedding)
            if "projection" in helpers:
                mine = helpers["projection"](mine)
            loss = F.mse_loss(mine, theirs, reduction="sum") / len(mine)
            return {"embedding": value_at(self.weight, batch.epoch) * loss}
