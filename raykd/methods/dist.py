"""DIST: Pearson correlation with the teacher's predictions instead of equality.

Shapes: B batch, C classes.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raykd.core.record import Limits
from raykd.core.types import Batch
from raykd.methods.base import LogitMethod, Schedule

EPSILON = 1e-8  # from the official code; added to the product of the norms


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlations [n] of the rows of two matrices [n, m]; 0 for constant rows."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPSILON)


class DIST(LogitMethod):
    """weight * T**2 * (beta * inter + gamma * intra), with probabilities at temperature T.

    inter = 1 - mean over samples of the correlation over classes, intra = 1 - mean over classes of
    the correlation over samples. Huang et al. 2022, arXiv 2205.10536, equations 6 to 8. Defaults
    of the official code: beta = gamma = 1, weight 2; T 4 for CIFAR-100, 1 for ImageNet. In a batch
    of one sample intra is 1.
    """

    title: ClassVar[str] = "Huang et al. 2022, arXiv 2205.10536"

    name: Literal["dist"] = "dist"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature T of both networks' probabilities."""
    beta: float = Field(default=1.0, ge=0, le=Limits.WEIGHT)
    """Weight beta of the inter-class term."""
    gamma: float = Field(default=1.0, ge=0, le=Limits.WEIGHT)
    """Weight gamma of the intra-class term."""
    weight: Schedule = 2.0
    """Factor of both terms: a number, [[first epoch, value], ...], or a ramp."""

    def logit_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """T**2 * (beta * inter + gamma * intra)."""
        student = F.softmax(student / self.temperature, dim=1)
        teacher = F.softmax(teacher / self.temperature, dim=1)
        inter = 1 - correlation(student, teacher).mean()
        intra = 1 - correlation(student.T, teacher.T).mean()
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)
