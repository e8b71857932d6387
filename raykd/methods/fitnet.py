"""FitNets: a middle stage of the student learns to predict the teacher's.

Shapes: B batch, K channels, H, W pixels.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods import feature_maps
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at


class FitNet(Method):
    """weight * mean((r(student) - teacher)**2) at one stage, with a trained regressor r.

    Romero et al. 2015, arXiv 1412.6550, whose hint training comes first and on its own. Here
    it runs beside the labels' cross entropy in one go, as in the CRD benchmark, which also
    gives r (convolution, batch norm, ReLU), the second stage after the stem and weight 100.
    Spot-adaptive distillation uses weight 1.
    """

    title: ClassVar[str] = "Romero et al. 2015, arXiv 1412.6550"
    cost: ClassVar[str] = "B K K H W"
    sakd_defaults: ClassVar[Mapping[str, Any]] = {"weight": 1.0}

    name: Literal["fitnet"] = "fitnet"
    weight: Schedule = 100.0
    stage: str = "stage2"  # the stage of both networks that is compared

    def needs(self) -> Signal:
        """Stage outputs."""
        return Signal.FEATURES

    def spots(
        self, student: Mapping[str, object], teacher: Mapping[str, object]
    ) -> Mapping[str, str]:
        """The stage."""
        return {self.stage: self.stage}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The regressor from the student's stage to the teacher's."""
        mine = feature_maps.shape(student, self.stage, self.name)
        theirs = feature_maps.shape(teacher, self.stage, self.name)
        return nn.ModuleDict({"regressor": feature_maps.Regressor(mine, theirs)})

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The regressor's mean squared error, at the stage."""
        with full_precision(student.logits):
            guess = helpers["regressor"](precise(student.features[self.stage]))
            loss = F.mse_loss(guess, precise(teacher.features[self.stage]))
            return {self.stage: value_at(self.weight, batch.epoch) * loss}
