"""Sample-wise contrastive distillation: InfoNCE over the logits of a batch.

Shapes: B batch, C classes.
"""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from raykd.core.types import Batch
from raykd.methods.base import LogitMethod, Schedule, canonical

SLUG = "sample_contrastive_kd"


def contrast(student: Tensor, teacher: Tensor) -> Tensor:
    """-mean log e^c(s_i, t_i) / (e^c(s_i, t_i) + sum over j != i e^c(s_i, s_j)), c the cosine."""
    student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    # The diagonal, a sample's cosine with itself, is replaced by the positive.
    scores = (student @ student.T).diagonal_scatter((student * teacher).sum(1))
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


class SampleContrastiveKD(LogitMethod):
    """weight * InfoNCE: positives (student i, teacher i), negatives (student i, student j).

    Zhu et al. 2024, arXiv 2404.14109 (CKD). Only the abstract was available: the cosine of logits
    as the similarity and the weight 1 are our choices. A single sample has no negatives: 0.
    """

    title: ClassVar[str] = "Zhu et al. 2024, arXiv 2404.14109"
    cost: ClassVar[str] = "B^2 C"

    name: Annotated[Literal["sample_contrastive_kd", "ckd"], canonical(SLUG)] = SLUG
    weight: Schedule = 1.0

    def logit_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The InfoNCE loss."""
        return contrast(student, teacher)
