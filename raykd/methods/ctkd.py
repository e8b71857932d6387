"""Curriculum temperature: a temperature that learns to make distillation harder."""

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
    """One learnt temperature for all samples: 1 + 20 sigmoid(theta), 15.62 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(()))

    def forward(self, reversal: float) -> Tensor:
        """The temperature, whose gradient to theta is multiplied by `reversal`."""
        theta = self.theta.detach() + reversal * (self.theta - self.theta.detach())
        return START + SPAN * torch.sigmoid(theta)


class CTKD(Method):
    """weight * T**2 * KL(softmax(teacher / T) || softmax(student / T)) with a T that is learnt.

    Li et al. 2023, arXiv 2211.16231, the global temperature: T ascends the loss, by a gradient
    that is reversed, with a strength that grows as a cosine from 0 to 1 over the first epochs. T
    is trained by the student's optimiser, weight decay included, and T**2 has a gradient too.
    Defaults of the official code: 0.9 and a label weight of 0.1 for CIFAR, 10 epochs; ImageNet 1
    and 1, 5 epochs. The code counts epochs from 1, so the first has a strength above 0. The
    variant that predicts a temperature for each sample is not here.
    """

    title: ClassVar[str] = "Li et al. 2023, arXiv 2211.16231"
    label_weight: ClassVar[Schedule] = 0.1

    name: Literal["ctkd"] = "ctkd"
    weight: Schedule = 0.9
    curriculum_epochs: int = Field(
        default=10, ge=0, le=Limits.EPOCHS
    )  # until the reversal has its full strength

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The temperature."""
        return nn.ModuleDict({"temperature": Temperature()})

    def reversal(self, epoch: int) -> float:
        """Factor of the temperature's gradient in an epoch (from 0): from 0 to -1."""
        if epoch + 1 >= self.curriculum_epochs:
            return -1.0
        return -(1 - math.cos(math.pi * (epoch + 1) / self.curriculum_epochs)) / 2

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The softened divergence, at the spot "logits"."""
        with full_precision(student.logits):
            temperature = helpers["temperature"](self.reversal(batch.epoch))
            mine, theirs = precise(student.logits), precise(teacher.logits)
            loss = soft_cross_entropy(mine, theirs, temperature)
            return {"logits": value_at(self.weight, batch.epoch) * loss}
