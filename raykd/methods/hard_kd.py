"""Distillation from the teacher's decision alone: its likeliest class as a label."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs
from raykd.methods.base import Coverage, Method, Schedule, full_precision, precise, value_at


class HardKD(Method):
    """weight * cross entropy with the teacher's likeliest class.

    Touvron et al. 2021 (DeiT), arXiv 2012.12877, section 3, equation 3, on the network's own logits
    instead of those of a distillation token; both weights are 1/2. A mixed sample has the class
    that the teacher sees in it. A cache of the largest logit is enough; where a codec rounds two
    logits to one number, the lower class counts.
    """

    title: ClassVar[str] = "Touvron et al. 2021, arXiv 2012.12877"
    label_weight: ClassVar[Schedule] = 0.5

    name: Literal["hard_kd"] = "hard_kd"
    weight: Schedule = 0.5
    """Factor of the loss: a number, [[first epoch, value], ...], or a ramp."""

    def accepts(self, coverage: Coverage) -> bool:
        """True: every coverage has the likeliest class."""
        return True

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The weighted cross entropy, at the spot "logits"."""
        # Merged classes, the last column, are together no class that could be the likeliest.
        of_classes = teacher.logits if teacher.kept is None else teacher.logits[:, :-1]
        with full_precision(student.logits):
            loss = F.cross_entropy(precise(student.logits), of_classes.argmax(1))
            return {"logits": value_at(self.weight, batch.epoch) * loss}
