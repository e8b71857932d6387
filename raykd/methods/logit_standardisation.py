"""Logit standardisation: KD between logits with mean 0 and standard deviation 1."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from raykd.core.record import Limits
from raykd.core.types import Batch
from raykd.methods.base import LogitMethod, Schedule, canonical, soft_cross_entropy, standardise

SLUG = "logit_standardisation"


class LogitStandardisation(LogitMethod):
    """weight * T**2 * KL(softmax(Z(teacher) / T) || softmax(Z(student) / T)), Z to mean 0, std 1.

    Sun et al. 2024, arXiv 2403.01427, equations 9 and 10. Unlike in spherical distillation, the
    labels' cross entropy reads the raw logits. Defaults of the released code: T 2, weight 9 and
    label weight 0.1; its logs name T 3 for vgg13 -> vgg8 and vgg13 -> MobileNetV2, and T 4 with
    weight 12 for resnet110 -> resnet20. `dkd` and `mlkd` have the option `standardise`.
    """

    title: ClassVar[str] = "Sun et al. 2024, arXiv 2403.01427"
    label_weight: ClassVar[Schedule] = 0.1

    name: Annotated[Literal["logit_standardisation", "ls"], canonical(SLUG)] = SLUG
    temperature: float = Field(default=2.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature T of both networks' standardised logits."""
    weight: Schedule = 9.0

    def logit_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """KL divergence of the softened, standardised logits."""
        return soft_cross_entropy(standardise(student), standardise(teacher), self.temperature)
