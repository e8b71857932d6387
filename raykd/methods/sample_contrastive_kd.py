"""Contrastive distillation of samples: a student's logits are the teacher's, and no one else's.

Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs
from raykd.methods.base import Method, Schedule, canonical, full_precision, precise, value_at

SLUG = "sample_contrastive_kd"


def contrast(student: Tensor, teacher: Tensor) -> Tensor:
    """-mean log e^c(s_i, t_i) / (e^c(s_i, t_i) + sum over j != i e^c(s_i, s_j)), c the cosine."""
    mine, theirs = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    # A sample's cosine with itself is no negative: its place is the positive's.
    scores = (mine @ mine.T).diagonal_scatter((mine * theirs).sum(1))
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


class SampleContrastiveKD(Method):
    """weight * InfoNCE over logits: the positive is the teacher's, negatives the batch's others.

    Zhu et al. 2024, arXiv 2404.14109 (CKD). Only its abstract was seen: the cosine of logits as
    similarity and the weight 1 are decisions taken here. One sample alone has no negatives: 0.
    """

    title: ClassVar[str] = "Zhu et al. 2024, arXiv 2404.14109"
    cost: ClassVar[str] = "B^2 C"

    name: Annotated[Literal["sample_contrastive_kd", "ckd"], canonical(SLUG)] = SLUG
    weight: Schedule = 1.0

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The contrast, at the spot "logits"."""
        with full_precision(student.logits):
            loss = contrast(precise(student.logits), precise(teacher.logits))
            return {"logits": value_at(self.weight, batch.epoch) * loss}
