"""Mimic learning: regression of the teacher's logits, or of its embeddings."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs
from raykd.methods.base import (
    LogitMethod,
    Looks,
    Schedule,
    Target,
    at_target,
    looks_for,
)
from raykd.methods.embedding_map import MappedSpotMethod, mapped


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


class MimicEmbedding(MappedSpotMethod):
    """weight * mean over samples of |P student - teacher|**2, on embeddings.

    The mimic learning of route constrained optimisation (Jin et al. 2019, arXiv 1904.09149). P is
    a linear map where the widths differ, otherwise the identity; this, the weight and raw
    embeddings by default are our choices. Published methods for faces compare directions:
    `normalise: true`.

    With `target: view_mean` the teacher's embedding is its mean over all stored views of a sample,
    whichever the student sees: a target whose noise by augmentation is divided by the number of
    views. That is the projection loss of Luo et al. 2022, arXiv 2206.00471 (equation of its code,
    hanlu-nju/AugCA), with a teacher's embedding in place of the network's own.
    """

    title: ClassVar[str] = "Jin et al. 2019, arXiv 1904.09149"
    cost: ClassVar[str] = "B D"

    name: Literal["mimic_embedding"] = "mimic_embedding"
    weight: Schedule = 1.0
    target: Target = "view"
    """Teacher's embedding to match: of the student's view, or the mean over all stored views."""
    normalise: bool = False
    """Compare directions alone: both embeddings at length 1."""

    def looks(self) -> Looks:
        """The given look, and of the teacher the mean over views where that is the target."""
        return looks_for(self.target)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The weighted loss against the target, at the embedding."""
        return super().losses(student, at_target(teacher, self.target), batch, helpers)

    def spot_loss(self, student: Tensor, teacher: Tensor, helpers: nn.ModuleDict) -> Tensor:
        """Squared distance of the embeddings, averaged over samples."""
        student = mapped(student, helpers)
        if self.normalise:
            student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
        return F.mse_loss(student, teacher, reduction="sum") / len(student)
