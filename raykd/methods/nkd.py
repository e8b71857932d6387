"""Normalised knowledge distillation: soft cross entropies of the target and of other classes.

Shapes: B batch, C classes.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raykd.core.record import Limits
from raykd.core.types import Batch
from raykd.methods.base import LogitMethod, Schedule, without_labels


def target_term(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """-mean p_teacher[label] * log p_student[label] over samples, from logits [B, C] at T = 1."""
    target = labels[:, None]
    log_student = F.log_softmax(student, dim=1).gather(1, target)
    return -(F.softmax(teacher, dim=1).gather(1, target) * log_student).mean()


def other_term(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T**2 times the cross entropy of the distributions over all classes but the label's."""
    log_student = F.log_softmax(without_labels(student, labels) / temperature, dim=1)
    soft = F.softmax(without_labels(teacher, labels) / temperature, dim=1)
    return -(temperature**2) * (soft * log_student).sum(1).mean()


class NKD(LogitMethod):
    """weight * (target term + gamma * T**2 * the cross entropy among the other classes).

    Yang et al. 2023, arXiv 2303.13005, equations 6 and 7. These are cross entropies: the minimum
    is the teacher's entropy, not 0. The paper's gamma 1.5 and T 1 are for ImageNet; the code's
    configuration for ResNet34 -> ResNet18 on CIFAR-100 has gamma 3.5 and T 3. A mixed sample counts
    with its heavier label.
    """

    title: ClassVar[str] = "Yang et al. 2023, arXiv 2303.13005"

    name: Literal["nkd"] = "nkd"
    temperature: float = Field(default=1.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature T of the term among the other classes."""
    gamma: float = Field(default=1.5, ge=0, le=Limits.WEIGHT)
    """Weight gamma of the term among the other classes."""
    weight: Schedule = 1.0
    """Factor of both terms: a number, [[first epoch, value], ...], or a ramp."""

    def reads_labels(self) -> bool:
        """True: the label's class is apart from the others."""
        return True

    def logit_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Target term + gamma * other classes' term."""
        target = target_term(student, teacher, batch.labels)
        return target + self.gamma * other_term(student, teacher, batch.labels, self.temperature)
