"""Regularisation by a virtual teacher: the label has one probability, the other classes the rest.

Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Signal
from raykd.methods.base import (
    Method,
    Schedule,
    canonical,
    divergence,
    full_precision,
    precise,
    value_at,
)


class TeacherFree(Method):
    """weight * KL(softmax(u / T) || softmax(student)), without a teacher.

    Yuan et al. 2020 (Tf-KD, the regularisation), arXiv 1909.11723. u is `confidence` for
    the label and shares the rest among the other classes; of a mixed sample it is the mixture. As
    u / T is at most 1 / T, the target is all but uniform: with C = 100 and T = 20 it is 0.0105 for
    the label and 0.00999 elsewhere, so this is label smoothing of the size of its weight. The
    code's losses are means over classes too, so its weights are C times as large: for ResNet18 on
    CIFAR-100 they are 0.1 here and 0.9 for the labels, with T = 20, and for MobileNetV2 0.0095 and
    0.05, with T = 40.
    """

    title: ClassVar[str] = "Yuan et al. 2020, arXiv 1909.11723"
    label_weight: ClassVar[Schedule] = 0.9
    teacherless: ClassVar[bool] = True

    name: Annotated[Literal["teacher_free", "tf_kd"], canonical("teacher_free")] = "teacher_free"
    confidence: float = Field(default=0.99, gt=0, le=1)
    """Probability u of the label in the virtual teacher."""
    temperature: float = Field(default=20.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature T of the virtual teacher alone."""
    weight: Schedule = 0.1
    """Factor of the loss: a number, [[first epoch, value], ...], or a ramp."""

    def needs(self) -> Signal:
        """No signals of a teacher."""
        return Signal(0)

    def student_needs(self) -> Signal:
        """The logits."""
        return Signal.LOGITS

    def reads_labels(self) -> bool:
        """True: the target is made of them."""
        return True

    def losses(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The weighted divergence, at the spot "logits"."""
        with full_precision(student.logits):
            logits = precise(student.logits)
            shares = batch.targets
            if shares.dim() == 1:  # one_hot would read the labels on the host
                shares = torch.zeros_like(logits).scatter_(1, shares[:, None], 1.0)
            rest = (1 - self.confidence) / max(1, logits.shape[1] - 1)
            u = rest + (self.confidence - rest) * shares.to(logits.dtype)
            target = F.log_softmax(u / self.temperature, dim=1)
            return {"logits": value_at(self.weight, batch.epoch) * divergence(logits, target, 1.0)}
