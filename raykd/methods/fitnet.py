"""FitNets: hints from a middle stage of the teacher.

Shapes: B batch, K channels, H, W pixels.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.types import Shapes
from raykd.methods import feature_maps
from raykd.methods.base import Schedule, SpotMethod, Stages
from raykd.methods.columns import FromColumns, StageMaps
from raykd.methods.derived import Derived


class FitNet(FromColumns, SpotMethod):
    """weight * mean((r(student) - teacher)**2) at one stage, with a trained regressor r.

    Romero et al. 2015, arXiv 1412.6550, who train the hint first, as a stage of its own. Here it
    is trained together with the labels' cross entropy, as in the CRD benchmark, the source of r
    (convolution, batch norm, ReLU), of the second stage after the stem and of weight 100.
    Spot-adaptive distillation uses weight 1.
    """

    title: ClassVar[str] = "Romero et al. 2015, arXiv 1412.6550"
    cost: ClassVar[str] = "B K K H W"
    sakd_defaults: ClassVar[Mapping[str, Any]] = {"weight": 1.0}

    name: Literal["fitnet"] = "fitnet"
    weight: Schedule = 100.0
    """Factor of the hint loss: a number, [[first epoch, value], ...], or a ramp."""
    stage: str = "stage2"
    """Stage of both networks whose maps are compared."""

    def columns(self) -> tuple[Derived, ...]:
        """The stage's maps."""
        return (StageMaps(stages=(self.stage,)),)

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """The stage."""
        return {self.stage: self.stage}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The regressor from the student's stage to the teacher's."""
        shape_in, shape_out = (
            feature_maps.stage_shape(shapes, self.stage, self.name) for shapes in (student, teacher)
        )
        return nn.ModuleDict({"regressor": feature_maps.Regressor(shape_in, shape_out)})

    def spot_loss(self, student: Tensor, teacher: Tensor, helpers: nn.ModuleDict) -> Tensor:
        """Mean squared error of the regressor."""
        return F.mse_loss(helpers["regressor"](student), teacher)
