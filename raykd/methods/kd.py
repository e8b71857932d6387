"""Knowledge distillation from softened logits (Hinton, Vinyals and Dean 2015)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs
from raykd.methods.base import (
    Coverage,
    Method,
    Schedule,
    full_precision,
    precise,
    soft_cross_entropy,
    value_at,
)


class KD(Method):
    """weight * T**2 * KL(softmax(teacher / T) || softmax(student / T)).

    Hinton et al. 2015, arXiv 1503.02531, section 2. The defaults are those of the CRD
    benchmark on CIFAR: T = 4, 0.9 of this loss and 0.1 of the labels'; on ImageNet the
    field uses T = 1 and 0.5 of each.
    """

    title: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531"
    label_weight: ClassVar[Schedule] = 0.1
    combine_defaults: ClassVar[Mapping[str, Any]] = {"weight": 1.0}  # the benchmark's "X + KD"

    name: Literal["kd"] = "kd"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    weight: Schedule = 0.9

    def accepts(self, coverage: Coverage) -> bool:
        """True for any coverage that suits the temperature; nothing else of the loss matters."""
        return coverage.suits(self.temperature)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The softened divergence, at the spot "logits"."""
        with full_precision(student.logits):
            loss = soft_cross_entropy(
                precise(student.logits), precise(teacher.logits), self.temperature
            )
            return {"logits": value_at(self.weight, batch.epoch) * loss}
