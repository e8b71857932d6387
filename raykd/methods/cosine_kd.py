"""Cosine similarity of the two networks' predictions for each class over the batch.

Shapes: B batch, C classes.
"""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raykd.core.record import Limits
from raykd.core.types import Batch
from raykd.methods.base import LogitMethod, Schedule, canonical

EPSILON = 1e-8


def class_cosine(student: Tensor, teacher: Tensor, temperatures: Tensor) -> Tensor:
    """2 mean(T)**2 (1 - mean over classes of |cosine|) of logits [B, C] at temperatures [B, 1].

    The cosine of a class is between its columns of probabilities [B].
    """
    student = F.softmax(student / temperatures, dim=1)
    teacher = F.softmax(teacher / temperatures, dim=1)
    norms = student.norm(dim=0) * teacher.norm(dim=0) + EPSILON
    similarity = (student * teacher).sum(0).abs() / norms
    return 2 * temperatures.mean() ** 2 * (1 - similarity.mean())


def weighted_temperatures(student: Tensor, teacher: Tensor, low: float, high: float) -> Tensor:
    """Temperatures [B, 1] from `low` to `high`: high where the two predictions differ most.

    Linear in the cosine of the predictions at temperature 1, from the batch's largest to its
    smallest; `low` for all samples where these are equal. Carries no gradient.
    """
    with torch.no_grad():
        cosine = F.cosine_similarity(F.softmax(student, dim=1), F.softmax(teacher, dim=1), dim=1)
        smallest, largest = cosine.aminmax()
        spread = largest - smallest
        constant = spread <= 8 * torch.finfo(cosine.dtype).eps  # up to rounding
        share = ((largest - cosine) / spread).masked_fill(constant, 0.0)
        return (low + (high - low) * share)[:, None]


class CosineKD(LogitMethod):
    """weight * (cosine loss at T + cosine loss at a temperature per sample).

    Ham et al. 2023, arXiv 2311.14307 (CSKD, with its weighted temperature, CSWT). The loss compares
    columns over the batch; it is 0 for a single sample. The paper's range of temperatures was not
    available: `low` 2, `high` 6 and the weight 1 are our choices. The paper's full objective adds
    the strong view and the Gram matrices of `mlkd`, which are not part of this method.
    """

    title: ClassVar[str] = "Ham et al. 2023, arXiv 2311.14307"

    name: Annotated[Literal["cosine_kd", "cswt"], canonical("cosine_kd")] = "cosine_kd"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature T of the first term."""
    low: float = Field(default=2.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature of the sample on which both networks differ least, in the second term."""
    high: float = Field(default=6.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature of the sample on which both networks differ most, in the second term."""
    weighted: bool = True
    """Add the second term, whose temperature is each sample's own."""
    weight: Schedule = 1.0

    def logit_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The cosine loss at T and, if `weighted`, at a temperature per sample."""
        if len(student) < 2:
            return 0.0 * student.sum()
        temperatures = student.new_full((len(student), 1), self.temperature)
        loss = class_cosine(student, teacher, temperatures)
        if self.weighted:
            temperatures = weighted_temperatures(student, teacher, self.low, self.high)
            loss = loss + class_cosine(student, teacher, temperatures)
        return loss
