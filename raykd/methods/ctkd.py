"""Curriculum temperature: KD with a temperature trained to maximise the loss."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.base import (
    Method,
    Schedule,
    full_precision,
    precise,
    soft_cross_entropy,
    value_at,
)

START, SPAN = 1.0, 20.0  # the temperature lies between START and START + SPAN


class Temperature(nn.Module):
    """Global trained temperature 1 + 20 sigmoid(theta); 15.62 initially."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, reversal: float) -> Tensor:
        """The temperature; its gradient to theta is multiplied by `reversal`."""
        theta = self.theta.detach() + reversal * (self.theta - self.theta.detach())
        return START + SPAN * torch.sigmoid(theta)


class CTKD(Method):
    """weight * T**2 * KL(softmax(teacher / T) || softmax(student / T)) with a trained T.

    Li et al. 2023, arXiv 2211.16231, the global temperature: T ascends the loss by a reversed
    gradient, whose factor grows as a cosine from 0 to 1 over the first epochs. T is trained by the
    student's optimiser, weight decay included, and T**2 has a gradient, too. Defaults of the
    official code: weight 0.9 and label weight 0.1 for CIFAR, 10 epochs; for ImageNet 1 and 1, 5
    epochs. The code counts epochs from 1, so the first epoch's factor is above 0. The variant with
    a temperature per sample is not implemented.
    """

    title: ClassVar[str] = "Li et al. 2023, arXiv 2211.16231"
    label_weight: ClassVar[Schedule] = 0.1

    name: Literal["ctkd"] = "ctkd"
    weight: Schedule = 0.9
    """Factor of the loss: a number, [[first epoch, value], ...], or a ramp."""
    curriculum_epochs: int = Field(default=10, ge=0, le=Limits.EPOCHS)
    """Epochs in which the reversed gradient of the temperature grows from 0 to its full size."""

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The temperature."""
        return nn.ModuleDict({"temperature": Temperature()})

    def reversal(self, epoch: int) -> float:
        """Factor of the temperature's gradient in an epoch (from 0), between 0 and -1."""
        if epoch + 1 >= self.curriculum_epochs:
            return -1.0
        return -(1 - math.cos(math.pi * (epoch + 1) / self.curriculum_epochs)) / 2

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """KL divergence of the softened logits, at the spot "logits"."""
        with full_precision(student.logits):
            temperature = helpers["temperature"](self.reversal(batch.epoch))
            loss = soft_cross_entropy(precise(student.logits), precise(teacher.logits), temperature)
            return {"logits": value_at(self.weight, batch.epoch) * loss}
