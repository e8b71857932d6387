"""Cosine similarity distillation: each class's predictions over the batch, as directions.

Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs
from raykd.methods.base import Method, Schedule, canonical, full_precision, precise, value_at

EPSILON = 1e-8


def class_cosine(student: Tensor, teacher: Tensor, temperatures: Tensor) -> Tensor:
    """2 mean(T)**2 (1 - mean |cosine| of classes' columns), of logits [B, C] and T [B, 1]."""
    mine = F.softmax(student / temperatures, dim=1)
    theirs = F.softmax(teacher / temperatures, dim=1)
    norms = mine.norm(dim=0) * theirs.norm(dim=0) + EPSILON
    similarity = (mine * theirs).sum(0).abs() / norms
    return 2 * temperatures.mean() ** 2 * (1 - similarity.mean())


def weighted_temperatures(student: Tensor, teacher: Tensor, low: float, high: float) -> Tensor:
    """A temperature for each sample [B, 1]: high where the two predictions are least alike.

    Linear between the batch's largest and smallest cosine of the predictions at temperature 1;
    `low` for all where they are equal. Has no gradient.
    """
    with torch.no_grad():
        mine, theirs = F.softmax(student, dim=1), F.softmax(teacher, dim=1)
        alike = F.cosine_similarity(mine, theirs, dim=1)
        lowest, highest = alike.aminmax()
        spread = highest - lowest
        same = spread <= 8 * torch.finfo(alike.dtype).eps  # up to rounding
        share = ((highest - alike) / spread).masked_fill(same, 0.0)
        return (low + (high - low) * share)[:, None]


class CosineKD(Method):
    """weight * (cosine loss at T + cosine loss with a temperature for each sample).

    Ham et al. 2023, arXiv 2311.14307 (CSKD, with its weighted temperature, CSWT). Columns are
    compared over the batch, so it wants two samples or more. The paper's range of temperatures
    was not seen: `low` 2, `high` 6 and the weight 1 of the sum are decisions taken here. Its full
    objective is mlkd's, with a strong view and Gram matrices; this is its own part.
    """

    title: ClassVar[str] = "Ham et al. 2023, arXiv 2311.14307"

    name: Annotated[Literal["cosine_kd", "cswt"], canonical("cosine_kd")] = "cosine_kd"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    low: float = Field(default=2.0, gt=0, le=Limits.TEMPERATURE)  # for the weighted term
    high: float = Field(default=6.0, gt=0, le=Limits.TEMPERATURE)
    weighted: bool = True  # False leaves the second term out
    weight: Schedule = 1.0

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """One minus the mean cosine, scaled, at the spot "logits"; 0 for a single sample."""
        with full_precision(student.logits):
            mine, theirs = precise(student.logits), precise(teacher.logits)
            if len(mine) < 2:
                return {"logits": 0.0 * mine.sum()}
            loss = class_cosine(mine, theirs, mine.new_full((len(mine), 1), self.temperature))
            if self.weighted:
                each = weighted_temperatures(mine, theirs, self.low, self.high)
                loss = loss + class_cosine(mine, theirs, each)
            return {"logits": value_at(self.weight, batch.epoch) * loss}
