"""Relational knowledge distillation: distances and angles among the samples of a batch.

Shapes: B batch, D embedding width.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Signal
from raykd.methods.base import Method, Schedule, canonical, full_precision, precise, value_at

_SMALLEST = 1e-12  # lower bound of a squared distance, and of a mean
# Where |x - y|**2 is less than this part of |x|**2 + |y|**2, it is rounding: of inner products in
# float64 up to about 1e-14, of embeddings in float32 up to about 1e-14 too.
_ROUNDING = 1e-13


def _gram(embedding: Tensor) -> Tensor:
    """Inner products [B, B] of the embeddings [B, D] after their mean is taken off, as float64.

    Distances and angles do not change by the shift, but what cancels in them is then small; in
    float32 the distance of two near samples would be lost.
    """
    embedding = embedding.double()  # first: the mean's rounding would move near samples apart
    centred = embedding - embedding.mean(0)
    return centred @ centred.T


def _squared(gram: Tensor) -> Tensor:
    """Squared distances [B, B] from inner products; 0 between samples at the same place."""
    squares = gram.diagonal()
    both = squares[:, None] + squares
    squared = both - 2 * gram
    return squared.where(squared > _ROUNDING * both, 0.0)


def distances(gram: Tensor) -> Tensor:
    """Euclidean distances [B, B] from inner products, over the mean of the positive ones."""
    off = ~torch.eye(len(gram), dtype=torch.bool, device=gram.device)
    distance = _squared(gram).clamp_min(_SMALLEST).sqrt() * off
    mean = distance.sum() / off.sum().clamp_min(1)
    return distance / mean.clamp_min(_SMALLEST)


def angles(embedding: Tensor, gram: Tensor) -> Tensor:
    """Cosines [B, B, B] of the angles j - i - k of embeddings [B, D]; 0 where i is at j or k.

    From differences [B, B, D] where D is no more than B, and otherwise from the inner products:
    (x_j - x_i)(x_k - x_i) = G_jk - (G_ij - G_ii / 2) - (G_ik - G_ii / 2).
    """
    squared = _squared(gram)
    same = squared == 0  # no direction: what is left of an inner product is rounding
    inverse = squared.masked_fill(same, 1.0).rsqrt().masked_fill(same, 0.0).to(embedding.dtype)
    if embedding.shape[1] <= len(embedding):
        unit = (embedding[None] - embedding[:, None]) * inverse[:, :, None]
        return unit @ unit.mT
    moved = gram - gram.diagonal()[:, None] / 2
    # What cancels, cancels in float64; its result is as good as any in the embeddings' dtype.
    inner = (gram[None] - moved[:, :, None] - moved[:, None, :]).to(embedding.dtype)
    return inner * inverse[:, :, None] * inverse[:, None, :]


def relations(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The distance loss and the angle loss of embeddings [B, D] and [B, D']; 0 for one sample."""
    if len(student) < 2:
        nothing = 0.0 * student.sum()
        return nothing, nothing
    mine, theirs = _gram(student), _gram(teacher)
    distance = F.smooth_l1_loss(distances(mine), distances(theirs))
    angle = F.smooth_l1_loss(angles(student, mine), angles(teacher, theirs))
    return distance.to(student.dtype), angle


class RelationalKD(Method):
    """weight * (distance_weight * distance loss + angle_weight * angle loss) on embeddings.

    Park et al. 2019, arXiv 1904.05068, equations 4 to 9: smooth L1 between the pairwise distances
    (over their mean) and between the cosines of all angles. Distances of pairs at the same place
    count as positive with 1e-6, as in the official code. Weights 25 and 50 of the paper, 1 of the
    CRD benchmark. Not residual distillation (arXiv 2002.09168), which has the same acronym.
    """

    title: ClassVar[str] = "Park et al. 2019, arXiv 1904.05068"
    cost: ClassVar[str] = "B^2 D + B^3"

    name: Annotated[Literal["relational_kd", "rkd"], canonical("relational_kd")] = "relational_kd"
    distance_weight: float = Field(default=25.0, ge=0, le=Limits.WEIGHT)
    angle_weight: float = Field(default=50.0, ge=0, le=Limits.WEIGHT)
    weight: Schedule = 1.0

    def needs(self) -> Signal:
        """The embeddings."""
        return Signal.EMBEDDING

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Both relations, at the spot "embedding"."""
        with full_precision(student.embedding):
            mine, theirs = precise(student.embedding), precise(teacher.embedding)
            distance, angle = relations(mine, theirs)
            loss = self.distance_weight * distance + self.angle_weight * angle
            return {"embedding": value_at(self.weight, batch.epoch) * loss}
