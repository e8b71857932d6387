"""Decoupled knowledge distillation: separate weights for the target class and the other classes.

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
    """TCKD: T**2 KL(teacher || student) of the binary (target, not target), for logits [B, C]."""
    log_student = _binary(student / temperature, labels)
    log_teacher = finite(_binary(teacher / temperature, labels))
    mean = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * mean


def other_divergence(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """NCKD: T**2 KL(teacher || student) over the non-target classes."""
    student, teacher = without_labels(student, labels), without_labels(teacher, labels)
    return soft_cross_entropy(student, teacher, temperature)


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities [B, 2] of (target, not target), in log space instead of log(1 - p)."""
    target = logits.gather(1, labels[:, None])
    not_target = without_labels(logits, labels).logsumexp(1, keepdim=True)
    return F.log_softmax(torch.cat([target, not_target], dim=1), dim=1)


class DKD(Method):
    """warm-up * (alpha * TCKD + beta * NCKD).

    Zhao et al. 2022, arXiv 2203.08679, equation 7; KD is TCKD + (1 - p_target) NCKD for each
    sample. Defaults of the official code for CIFAR-100: alpha 1, T 4, a linear warm-up of 20
    epochs, and beta 8; its beta is 2 for resnet56 -> resnet20 and resnet110 -> resnet32, 6 for
    vgg13 and for wrn_40_2 -> wrn_16_2 or wrn_40_1. ImageNet: T 1, beta 0.5 (ResNet34 -> ResNet18)
    or 2 (ResNet50 -> MobileNetV1), 1 epoch of warm-up. `standardise` applies logit standardisation
    (arXiv 2403.01427), whose code multiplies alpha and beta by 9 to 18 and uses T 2.
    """

    title: ClassVar[str] = "Zhao et al. 2022, arXiv 2203.08679"

    name: Literal["dkd"] = "dkd"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature T of both networks' probabilities."""
    alpha: float = Field(default=1.0, ge=0, le=Limits.WEIGHT)
    """Weight alpha of TCKD, the divergence between target and all other classes."""
    beta: float = Field(default=8.0, ge=0, le=Limits.WEIGHT)
    """Weight beta of NCKD, the divergence among the other classes."""
    warmup_epochs: int = Field(default=20, ge=0, le=Limits.EPOCHS)
    """Epochs in which alpha and beta grow linearly to their values; 0: none."""
    standardise: bool = False
    """Bring each row of logits to mean 0 and deviation 1 first."""

    def reads_labels(self) -> bool:
        """True: the label's class is apart from the others."""
        return True

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """TCKD and NCKD, at the spot "logits"."""
        with full_precision(student.logits):
            z_s, z_t = precise(student.logits), precise(teacher.logits)
            if self.standardise:
                z_s, z_t = standardise(z_s), standardise(z_t)
            tckd = target_divergence(z_s, z_t, batch.labels, self.temperature)
            nckd = other_divergence(z_s, z_t, batch.labels, self.temperature)
            loss = self.alpha * tckd + self.beta * nckd
            return {"logits": warmup_factor(batch.epoch, self.warmup_epochs) * loss}
