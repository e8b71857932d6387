"""Confidence-aware distillation from several teachers: those that are right count more.

Shapes: B batch, C classes, M teachers.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.types import Batch
from raykd.methods.panel_kd import PanelKD


class CAMKD(PanelKD):
    """weight * mean over samples of sum over teachers of w_m * T**2 KL(t_m || s).

    w_m = (1 - softmax over teachers of their cross entropy with the label) / (M - 1), which sum to
    1. Zhang et al. 2022, arXiv 2201.00007, equations 2 and 3; the authors' code (Rorozhl/CA-MKD)
    divides by M again: `normalise: false`. Its loss of intermediate features is not here.
    """

    title: ClassVar[str] = "Zhang et al. 2022, arXiv 2201.00007"

    name: Literal["ca_mkd"] = "ca_mkd"
    normalise: bool = True
    """Weights that sum to 1, as in the paper; false: to 1 / M, as in its code."""

    def reads_labels(self) -> bool:
        """True: the weights follow from them."""
        return True

    def teacher_weights(
        self, student: Tensor, teachers: Tensor, batch: Batch, helpers: nn.ModuleDict
    ) -> Tensor:
        """Weights [M, B]."""
        count = len(teachers)
        wrong = torch.stack(
            [F.cross_entropy(one, batch.targets, reduction="none") for one in teachers]
        )
        weights = (1 - wrong.softmax(0)) / (count - 1)
        return weights if self.normalise else weights / count
