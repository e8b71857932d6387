"""DIST: the student's predictions should correlate with the teacher's, not equal them.

Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at

EPSILON = 1e-8  # from the official code; added to the product of the norms


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of [n, m] with its row of [n, m]; 0 for constant rows."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPSILON)


class DIST(Method):
    """weight * T**2 * (beta * inter + gamma * intra), with probabilities at temperature T.

    inter = 1 - the mean correlation over the classes of a sample, intra = 1 - that over the
    samples of a class. Huang et al. 2022, arXiv 2205.10536, equations 6 to 8. The official code's
    defaults: beta = gamma = 1, weight 2; T 4 for CIFAR-100, 1 for ImageNet. One sample alone has
    no correlation within a class: intra is then 1.
    """

    title: ClassVar[str] = "Huang et al. 2022, arXiv 2205.10536"

    name: Literal["dist"] = "dist"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    beta: float = Field(default=1.0, ge=0, le=Limits.WEIGHT)  # between classes
    gamma: float = Field(default=1.0, ge=0, le=Limits.WEIGHT)  # within classes
    weight: Schedule = 2.0

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The missing correlation, at the spot "logits"."""
        with full_precision(student.logits):
            mine = F.softmax(precise(student.logits) / self.temperature, dim=1)
            theirs = F.softmax(precise(teacher.logits) / self.temperature, dim=1)
            inter = 1 - correlation(mine, theirs).mean()
            intra = 1 - correlation(mine.T, theirs.T).mean()
            loss = self.temperature**2 * (self.beta * inter + self.gamma * intra)
            return {"logits": value_at(self.weight, batch.epoch) * loss}
