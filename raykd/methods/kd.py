"""Knowledge distillation from softened logits (Hinton, Vinyals and Dean 2015)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs
from raykd.methods.base import (
    Coverage,
    LogitMethod,
    Looks,
    Schedule,
    Target,
    at_target,
    looks_for,
    soft_cross_entropy,
)


class KD(LogitMethod):
    """weight * T**2 * KL(softmax(teacher / T) || softmax(student / T)).

    Hinton et al. 2015, arXiv 1503.02531, section 2. Defaults of the CRD benchmark on CIFAR: T = 4,
    weight 0.9 and label weight 0.1; on ImageNet the field uses T = 1 and 0.5 for both weights.

    With `target: view_mean` the teacher's probabilities (at T = 1) are their mean over all stored
    views of a sample, whichever the student sees; this is our choice.
    """

    title: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531"
    label_weight: ClassVar[Schedule] = 0.1
    combine_defaults: ClassVar[Mapping[str, Any]] = {"weight": 1.0}  # the benchmark's "X + KD"

    name: Literal["kd"] = "kd"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature T of both networks' probabilities."""
    weight: Schedule = 0.9
    target: Target = "view"
    """Teacher's answer to match: that for the student's view, or its mean over all stored views."""

    def accepts(self, coverage: Coverage) -> bool:
        """True for any coverage that suits the temperature; a mean over views is over all."""
        if self.target == "view_mean" and coverage.classes != "all":
            return False
        return coverage.suits(self.temperature)

    def looks(self) -> Looks:
        """The given look, and of the teacher the mean over views where that is the target."""
        return looks_for(self.target)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The weighted divergence from the target, at the logits."""
        return super().losses(student, at_target(teacher, self.target), batch, helpers)

    def logit_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """KL divergence of the softened logits."""
        return soft_cross_entropy(student, teacher, self.temperature)
