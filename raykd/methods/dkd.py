"""Decoupled knowledge distillation: the target class and the others, each with its own weight.

Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs
from raykd.methods.base import (
    Method,
    finite,
    full_precision,
    precise,
    soft_cross_entropy,
    standardise,
    warmup_factor,
    without_labels,
)


def target_divergence(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """TCKD: T**2 KL(teacher || student) of (target, not target), for logits [B, C]."""
    mine, theirs = _binary(student / temperature, labels), _binary(teacher / temperature, labels)
    mean = F.kl_div(mine, finite(theirs), reduction="batchmean", log_target=True)
    return temperature**2 * mean


def other_divergence(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """NCKD: T**2 KL(teacher || student) among the classes that are not the target."""
    student, teacher = without_labels(student, labels), without_labels(teacher, labels)
    return soft_cross_entropy(student, teacher, temperature)


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities [B, 2] of the target and of all else; sums of logs, never log(1 - p)."""
    target, rest = logits.gather(1, labels[:, None]), without_labels(logits, labels)
    return F.log_softmax(torch.cat([target, rest.logsumexp(1, keepdim=True)], dim=1), dim=1)


class DKD(Method):
    """warm-up * (alpha * TCKD + beta * NCKD).

    Zhao et al. 2022, arXiv 2203.08679, equation 7; KD is TCKD + (1 - p_target) NCKD for each
    sample. Defaults of the official code for CIFAR-100: alpha 1, T 4, a linear warm-up of 20
    epochs, and beta 8; its beta is 2 for resnet56 -> resnet20 and resnet110 -> resnet32, 6 for
    vgg13 and for wrn_40_2 -> wrn_16_2 or wrn_40_1. ImageNet: T 1, beta 0.5 (ResNet34 -> ResNet18)
    or 2 (ResNet50 -> MobileNetV1), 1 epoch of warm-up. `standardise` distils standardised logits
    (arXiv 2403.01427), whose code multiplies alpha and beta by 9 to 18 and uses T 2.
    """

    title: ClassVar[str] = "Zhao et al. 2022, arXiv 2203.08679"

    name: Literal["dkd"] = "dkd"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    alpha: float = Field(default=1.0, ge=0, le=Limits.WEIGHT)  # the target class's weight
    beta: float = Field(default=8.0, ge=0, le=Limits.WEIGHT)  # weight of the other classes' term
    warmup_epochs: int = Field(default=20, ge=0, le=Limits.EPOCHS)  # both grow linearly
    standardise: bool = False

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Both divergences, at the spot "logits"."""
        with full_precision(student.logits):
            mine, theirs = precise(student.logits), precise(teacher.logits)
            if self.standardise:
                mine, theirs = standardise(mine), standardise(theirs)
            target = target_divergence(mine, theirs, batch.labels, self.temperature)
            other = other_divergence(mine, theirs, batch.labels, self.temperature)
            loss = self.alpha * target + self.beta * other
            return {"logits": warmup_factor(batch.epoch, self.warmup_epochs) * loss}
