"""Base class of methods that weigh several teachers' logits sample by sample.

Shapes: B batch, C classes, M teachers.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs
from raykd.methods.base import Method, Schedule, finite, full_precision, precise, value_at


class PanelKD(Method):
    """weight * mean over samples of the weighted sum over teachers of T**2 KL(t_m || s). Abstract.

    The logits are those of each member of a panel with `combine: none`. Of one teacher it is `kd`.
    """

    panel: ClassVar[bool] = True
    cost: ClassVar[str] = "M B C"

    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature T that divides all logits of the divergences."""
    weight: Schedule = 1.0
    """Factor of the method's loss: a number, [[first epoch, value], ...], or a ramp."""

    @abstractmethod
    def teacher_weights(
        self, student: Tensor, teachers: Tensor, batch: Batch, helpers: nn.ModuleDict
    ) -> Tensor:
        """Weights [M, B] or [M, 1] of teachers with logits [M, B, C]; M is 2 or more."""

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The weighted loss, at the spot "logits"."""
        with full_precision(student.logits):
            mine = precise(student.logits)
            members = teacher.panel or (teacher,)
            theirs = torch.stack([precise(member.logits) for member in members])
            if len(theirs) > 1:
                weights = self.teacher_weights(mine.detach(), theirs, batch, helpers)
            else:
                weights = theirs.new_ones(1, 1)
            apart = divergences(mine, theirs, self.temperature)
            loss = (weights * apart).sum() / max(1, len(mine))
            return {"logits": value_at(self.weight, batch.epoch) * loss}


def divergences(student: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """T**2 KL(t || s) [M, B] of logits [M, B, C] and [B, C]."""
    log_student = (student / temperature).log_softmax(-1).expand_as(teachers)
    log_teachers = finite((teachers / temperature).log_softmax(-1))
    apart = F.kl_div(log_student, log_teachers, reduction="none", log_target=True)
    return apart.sum(-1) * temperature**2
