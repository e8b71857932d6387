"""Jacobian matching: the label's logit should react to the pixels as the teacher's does.

Shapes: B batch, C classes, H, W pixels.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs, Signal
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at


def sensitivity(outputs: Outputs, labels: Tensor, *, differentiable: bool) -> Tensor:
    """The derivative of each sample's label logit by its pixels, of length 1: [B, 3 H W].

    `differentiable`: whether it can be differentiated again, by the network's parameters.
    """
    score = outputs.logits.gather(1, labels[:, None]).sum()
    with torch.enable_grad():
        (jacobian,) = torch.autograd.grad(
            score, outputs.pixels, create_graph=differentiable, retain_graph=True
        )
    return F.normalize(precise(jacobian).flatten(1), dim=1)


class JacobianMatching(Method):
    """weight * mean (J_student - J_teacher)**2, each sample's Jacobian of length 1.

    Srinivas and Fleuret 2018, arXiv 1803.00443; also Sobolev training (Czarnecki et al. 2017,
    arXiv 1706.04859). The derivative of the label's logit alone, and the weight 20, are the
    Knowledge-Distillation-Zoo's; the paper matches attention maps' Jacobians too. Differentiates
    the student twice and needs the teacher's gradient by the pixels.
    """

    title: ClassVar[str] = "Srinivas and Fleuret 2018, arXiv 1803.00443"
    cost: ClassVar[str] = "a backward of the teacher, two more of the student"

    name: Literal["jacobian"] = "jacobian"
    weight: Schedule = 20.0

    def needs(self) -> Signal:
        """Logits that can be differentiated by the pixels."""
        return Signal.LOGITS | Signal.PIXELS

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The mean squared difference, at the spot "logits"."""
        with full_precision(student.logits):
            mine = sensitivity(student, batch.labels, differentiable=True)
            theirs = sensitivity(teacher, batch.labels, differentiable=False).detach()
            return {"logits": value_at(self.weight, batch.epoch) * F.mse_loss(mine, theirs)}
