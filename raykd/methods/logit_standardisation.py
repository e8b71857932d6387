"""Logit standardisation: distillation of logits that have mean 0 and deviation 1."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs
from raykd.methods.base import (
    Method,
    Schedule,
    canonical,
    full_precision,
    precise,
    soft_cross_entropy,
    standardise,
    value_at,
)

SLUG = "logit_standardisation"


class LogitStandardisation(Method):
    """weight * T**2 * KL(softmax(Z(teacher) / T) || softmax(Z(student) / T)), Z to mean 0, std 1.

    Sun et al. 2024, arXiv 2403.01427, equations 9 and 10. Unlike in spherical distillation, the
    labels' cross entropy reads the raw logits. Defaults of the released code: T 2, weight 9 and
    label weight 0.1; its logs name T 3 for vgg13 -> vgg8 and vgg13 -> MobileNetV2, and T 4 with
    weight 12 for resnet110 -> resnet20. `dkd` and `mlkd` have it as an option.
    """

    title: ClassVar[str] = "Sun et al. 2024, arXiv 2403.01427"
    label_weight: ClassVar[Schedule] = 0.1

    name: Annotated[Literal["logit_standardisation", "ls"], canonical(SLUG)] = SLUG
    temperature: float = Field(default=2.0, gt=0, le=Limits.TEMPERATURE)
    weight: Schedule = 9.0

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The softened divergence of the standardised logits, at the spot "logits"."""
        with full_precision(student.logits):
            mine, theirs = standardise(precise(student.logits)), precise(teacher.logits)
            loss = soft_cross_entropy(mine, standardise(theirs), self.temperature)
            return {"logits": value_at(self.weight, batch.epoch) * loss}
