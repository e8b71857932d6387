"""Relational knowledge distillation: distances and angles among the samples of a batch.

Shapes: B batch, D embedding width.
"""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.methods.base import Schedule, SpotMethod, canonical

_SMALLEST = 1e-12  # lower bound of a squared distance, and of a mean
# A smaller |x - y|**2 / (|x|**2 + |y|**2) counts as 0: rounding of inner products in float64, and
# of embeddings in float32, reaches about 1e-14.
_ROUNDING = 1e-13


def _gram(embedding: Tensor) -> Tensor:
    """Inner products [B, B] of the centred embeddings [B, D], in float64.

    Distances and angles are invariant to the shift, which reduces cancellation; in float32 the
    distance of two close samples would be lost.
    """
    embedding = embedding.double()  # before the mean, whose rounding would separate close samples
    centred = embedding - embedding.mean(0)
    return centred @ centred.T


def _squared(gram: Tensor) -> Tensor:
    """Squared distances [B, B] from inner products; 0 between equal embeddings."""
    squares = gram.diagonal()
    both = squares[:, None] + squares
    squared = both - 2 * gram
    return squared.where(squared > _ROUNDING * both, 0.0)


def distances(gram: Tensor) -> Tensor:
    """Euclidean distances [B, B] from inner products, divided by the mean of the positive ones."""
    off_diagonal = ~torch.eye(len(gram), dtype=torch.bool, device=gram.device)
    distance = _squared(gram).clamp_min(_SMALLEST).sqrt() * off_diagonal
    mean = distance.sum() / off_diagonal.sum().clamp_min(1)
    return distance / mean.clamp_min(_SMALLEST)


def angles(embedding: Tensor, gram: Tensor) -> Tensor:
    """Cosines [B, B, B] of the angles j - i - k of embeddings [B, D]; 0 where i equals j or k.

    From differences [B, B, D] where D <= B, otherwise from inner products:
    (x_j - x_i)(x_k - x_i) = G_jk - (G_ij - G_ii / 2) - (G_ik - G_ii / 2).
    """
    squared = _squared(gram)
    equal = squared == 0  # no direction
    inverse = squared.masked_fill(equal, 1.0).rsqrt().masked_fill(equal, 0.0).to(embedding.dtype)
    if embedding.shape[1] <= len(embedding):
        unit = (embedding[None] - embedding[:, None]) * inverse[:, :, None]
        return unit @ unit.mT
    shifted = gram - gram.diagonal()[:, None] / 2
    # The subtractions cancel in float64; their result fits the embeddings' dtype.
    inner = (gram[None] - shifted[:, :, None] - shifted[:, None, :]).to(embedding.dtype)
    return inner * inverse[:, :, None] * inverse[:, None, :]


def relations(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Distance loss and angle loss of embeddings [B, D] and [B, D']; 0 for one sample."""
    if len(student) < 2:
        zero = 0.0 * student.sum()
        return zero, zero
    gram_s, gram_t = _gram(student), _gram(teacher)
    distance = F.smooth_l1_loss(distances(gram_s), distances(gram_t))
    angle = F.smooth_l1_loss(angles(student, gram_s), angles(teacher, gram_t))
    return distance.to(student.dtype), angle


class RelationalKD(SpotMethod):
    """weight * (distance_weight * distance loss + angle_weight * angle loss) on embeddings.

    Park et al. 2019, arXiv 1904.05068, equations 4 to 9: smooth L1 between the pairwise distances
    (divided by their mean) and between the cosines of all angles. Distances of equal embeddings
    are 1e-6, as in the official code. Weights 25 and 50 are the paper's, 1 is the CRD benchmark's.
    Not residual distillation (arXiv 2002.09168), which has the same acronym.
    """

    title: ClassVar[str] = "Park et al. 2019, arXiv 1904.05068"
    cost: ClassVar[str] = "B^2 D + B^3"

    name: Annotated[Literal["relational_kd", "rkd"], canonical("relational_kd")] = "relational_kd"
    distance_weight: float = Field(default=25.0, ge=0, le=Limits.WEIGHT)
    """Weight lambda_D of the pairwise distances' loss."""
    angle_weight: float = Field(default=50.0, ge=0, le=Limits.WEIGHT)
    """Weight lambda_A of the angles' loss."""
    weight: Schedule = 1.0
    """Factor of both terms: a number, [[first epoch, value], ...], or a ramp."""

    def spot_loss(self, student: Tensor, teacher: Tensor, helpers: nn.ModuleDict) -> Tensor:
        """Weighted sum of the distance loss and the angle loss."""
        distance, angle = relations(student, teacher)
        return self.distance_weight * distance + self.angle_weight * angle
