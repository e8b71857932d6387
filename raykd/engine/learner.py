"""One training step's worth of mathematics: student, helpers and method as one module.

Shapes: B batch, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.methods.base import Method, full_precision
from raykd.models.staged import Staged
from raykd.types import Batch, Outputs


class Learner(nn.Module):
    """Everything that is trained, in one module: one wrapper for many workers, one state.

    The networks run in bfloat16 where `autocast` is set; losses are computed in float32.
    """

    def __init__(
        self, student: Staged, method: Method, helpers: nn.ModuleDict, *, autocast: bool = False
    ) -> None:
        super().__init__()
        self.student = student
        self.helpers = helpers
        self.method = method
        self.autocast = autocast

    def forward(
        self, batch: Batch, teacher: Outputs | None, label_weight: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The weighted scalar losses by name, and the student's logits [B, C].

        "label" is the labels' cross entropy of the method's scores; the others are the
        method's own, named by their spots.
        """
        with torch.autocast(batch.pixels.device.type, torch.bfloat16, self.autocast):
            student = self.student.outputs(batch.pixels, self.method.needs())
        scores = self.method.scores(student, teacher, self.helpers)
        with full_precision(scores):
            losses = {"label": label_weight * F.cross_entropy(scores.float(), batch.targets)}
        if teacher is not None:
            losses |= self.method.losses(student, teacher, batch, self.helpers)
        return losses, student.logits
