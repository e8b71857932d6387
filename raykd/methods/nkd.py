"""Normalised knowledge distillation: the target's soft cross entropy, and that of the others.

Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at, without_labels


def target_term(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """- mean p_teacher[label] * log p_student[label], of logits [B, C] at temperature 1."""
    target = labels[:, None]
    log_student = F.log_softmax(student, dim=1).gather(1, target)
    return -(F.softmax(teacher, dim=1).gather(1, target) * log_student).mean()


def other_term(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T**2 times the cross entropy between the distributions over all classes but the label's."""
    log_student = F.log_softmax(without_labels(student, labels) / temperature, dim=1)
    soft = F.softmax(without_labels(teacher, labels) / temperature, dim=1)
    return -(temperature**2) * (soft * log_student).sum(1).mean()


class NKD(Method):
    """weight * (target term + gamma * T**2 * the cross entropy among the other classes).

    Yang et al. 2023, arXiv 2303.13005, equations 6 and 7. Cross entropies, so the least that it
    can be is the teacher's entropy and not 0. The paper's gamma 1.5 and T 1 are ImageNet's; the
    code's configuration for ResNet34 -> ResNet18 on CIFAR-100 has gamma 3.5 and T 3. The label of
    a mixed sample is the heavier of its two.
    """

    title: ClassVar[str] = "Yang et al. 2023, arXiv 2303.13005"

    name: Literal["nkd"] = "nkd"
    temperature: float = Field(default=1.0, gt=0, le=Limits.TEMPERATURE)  # other classes'
    gamma: float = Field(default=1.5, ge=0, le=Limits.WEIGHT)
    weight: Schedule = 1.0

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Both terms, at the spot "logits"."""
        with full_precision(student.logits):
            mine, theirs = precise(student.logits), precise(teacher.logits)
            other = other_term(mine, theirs, batch.labels, self.temperature)
            loss = target_term(mine, theirs, batch.labels) + self.gamma * other
            return {"logits": value_at(self.weight, batch.epoch) * loss}
