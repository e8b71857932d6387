"""EmbedDistill: the teacher's embeddings, and its scores of queries against items.

Shapes: B batch, M items, D student's embedding width, E teacher's.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.methods.base import Schedule, finite
from raykd.methods.embedding_map import MappedSpotMethod, mapped

_TINY = 1e-12  # under the root, whose slope at 0 is infinite


def score_divergence(
    queries: Tensor,
    items: Tensor,
    teacher_queries: Tensor,
    teacher_items: Tensor,
    temperature: float,
) -> Tensor:
    """Mean over queries of KL(teacher || student) of softmax(scores / T) over items, in nats.

    `queries` [B, E] and `items` [M, E] are the student's, the others the teacher's; scores are
    cosines.
    """

    def log_scores(some: Tensor, others: Tensor) -> Tensor:
        cosine = F.normalize(some, dim=1) @ F.normalize(others, dim=1).T
        return (cosine / temperature).log_softmax(1)

    target = finite(log_scores(teacher_queries, teacher_items))
    student = log_scores(queries, items)
    return F.kl_div(student, target, reduction="batchmean", log_target=True)


class EmbedDistill(MappedSpotMethod):
    """weight * (a distance of P student and teacher + `score_weight` * a divergence of scores).

    Kim et al. 2023, arXiv 2301.12005. P is a linear map where the widths differ, and is released
    with a student of task `retrieval` whose gallery is the teacher's. `l2` is the mean over samples
    of |P s - t|, not squared (the paper's metric according to sentence-transformers'
    `EmbedDistillLoss`), `squared` of its square, `cosine` of 1 - cos. The scores are the cosines
    of a batch's queries with its items: `items: teacher` compares both networks' queries with the
    teacher's items, as where its gallery stays; `student` each with its own. Their weight of 0, the
    temperature and a weight of labels, where a task has them, are ours; the paper reports most of
    the gain from the distance.
    """

    title: ClassVar[str] = "Kim et al. 2023, arXiv 2301.12005"
    cost: ClassVar[str] = "B D E, scores: B^2 E"

    name: Literal["embed_distill"] = "embed_distill"
    distance: Literal["l2", "squared", "cosine"] = "l2"
    """Distance between the student's mapped embedding and the teacher's."""
    weight: Schedule = 1.0
    score_weight: float = Field(default=0.0, ge=0, le=Limits.WEIGHT)
    """Factor of the divergence of scores beside the distance; 0: the distance alone."""
    items: Literal["teacher", "student"] = "teacher"
    """Items that the student's queries are scored against: the teacher's, or its own."""
    temperature: float = Field(default=0.05, gt=0, le=Limits.TEMPERATURE)
    """Temperature T that divides the scores."""

    def spot_loss(self, student: Tensor, teacher: Tensor, helpers: nn.ModuleDict) -> Tensor:
        """The distance of the embeddings, and the divergence of scores where it counts."""
        student = mapped(student, helpers)
        if self.distance == "cosine":
            loss = (1 - F.cosine_similarity(student, teacher, dim=1)).mean()
        else:
            squared = (student - teacher).square().sum(1)
            loss = (squared if self.distance == "squared" else (squared + _TINY).sqrt()).mean()
        if not self.score_weight:
            return loss
        items = teacher if self.items == "teacher" else student
        divergence = score_divergence(student, items, teacher, teacher, self.temperature)
        return loss + self.score_weight * divergence
