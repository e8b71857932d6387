"""Jacobian matching: equal gradients of the label's logit with respect to the pixels.

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
    """Gradient of each sample's label logit with respect to its pixels, L2 norm 1: [B, 3 H W].

    `differentiable`: True keeps the graph for a second derivative, by the network's parameters.
    """
    score = outputs.logits.gather(1, labels[:, None]).sum()
    with torch.enable_grad():
        (jacobian,) = torch.autograd.grad(
            score, outputs.pixels, create_graph=differentiable, retain_graph=True
        )
    return F.normalize(precise(jacobian).flatten(1), dim=1)


class JacobianMatching(Method):
    """weight * mean (J_student - J_teacher)**2, each sample's Jacobian with L2 norm 1.

    Srinivas and Fleuret 2018, arXiv 1803.00443; also Sobolev training (Czarnecki et al. 2017,
    arXiv 1706.04859). The restriction to the label's logit and the weight 20 are from the
    Knowledge-Distillation-Zoo; the paper also matches the Jacobians of attention maps. Needs second
    derivatives of the student and the teacher's gradient with respect to the pixels.
    """

    title: ClassVar[str] = "Srinivas and Fleuret 2018, arXiv 1803.00443"
    cost: ClassVar[str] = "a backward of the teacher, two more of the student"

    name: Literal["jacobian"] = "jacobian"
    weight: Schedule = 20.0
    """Factor of the Jacobians' difference: a number, [[first epoch, value], ...], or a ramp."""

    def needs(self) -> Signal:
        """Logits that can be differentiated with respect to the pixels."""
        return Signal.LOGITS | Signal.PIXELS

    def reads_labels(self) -> bool:
        """True: the gradient is that of the label's logit."""
        return True

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Mean squared difference of the Jacobians, at the spot "logits"."""
        with full_precision(student.any_tensor):
            jacobian_s = sensitivity(student, batch.labels, differentiable=True)
            jacobian_t = sensitivity(teacher, batch.labels, differentiable=False).detach()
            loss = F.mse_loss(jacobian_s, jacobian_t)
            return {"logits": value_at(self.weight, batch.epoch) * loss}
