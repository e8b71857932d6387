"""Activation boundaries: student neurons that are active where the teacher's are.

Shapes: B batch, K channels, H, W pixels.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Shapes
from raykd.methods import feature_maps
from raykd.methods.base import LabelMethod, Prelude, Schedule, Trains

SCALE = 3 / 1000  # factor of every stage's loss in the CRD benchmark


def boundary_loss(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Squared hinges of pre-activations [B, K, H, W], summed over a sample, averaged over B.

    (s + margin)**2 where t <= 0 and s > -margin; (s - margin)**2 where t > 0 and s < margin.
    """
    # One hinge with the sign flipped where the teacher is active takes half the time of two.
    sign = 1 - 2 * (teacher > 0).to(student.dtype)
    return F.relu(sign * student + margin).square().sum() / len(student)


class ABInit(feature_maps.StageMethod):
    """weight * sum over stages k = 1..K of 2**(k - K) * 0.003 * hinges: the prelude of `AB`.

    The hinges are `boundary_loss` on pre-activations. In a wide residual network the last stage's
    pre-activation follows a batch norm that belongs to no stage. Here it uses batch statistics, as
    in any training. The CRD benchmark's code trains only the stages and leaves that norm in
    evaluation mode, with its initial mean 0 and variance 1: `settled_norm`. For untrained wrn_16_2
    and wrn_40_2 on 64 images of noise, the last stage's loss is 64.6 with it and 47.3 without. It
    has no effect on other networks.
    """

    title: ClassVar[str] = "Heo et al. 2019, arXiv 1811.03233"
    cost: ClassVar[str] = "B K H W per stage, and the connectors'"
    label_weight: ClassVar[Schedule] = 0.0
    trains: ClassVar[Trains] = "backbone"
    before_relu: ClassVar[bool] = True
    doubling: ClassVar[bool] = True
    factor: ClassVar[float] = SCALE

    name: Literal["ab_init"] = "ab_init"
    weight: Schedule = 1.0
    """Factor of the sum of hinges, by epoch of the prelude."""
    margin: float = Field(default=1.0, gt=0, le=Limits.WEIGHT)
    """Margin m of the squared hinges, in units of the pre-activations."""
    settled_norm: bool = False
    """Keep the batch norm after the last stage in evaluation mode; for wide residual networks."""

    def head_in_eval_mode(self) -> bool:
        """The field `settled_norm`."""
        return self.settled_norm

    def compared(self, student: Shapes, teacher: Shapes) -> list[str]:
        """All stages of the student. Raises `ConfigError` where one would stay untrained."""
        return feature_maps.require_all_stages(student, teacher, "ab")

    def stage_helper(self, student: feature_maps.Shape, teacher: feature_maps.Shape) -> nn.Module:
        """Connector to the teacher's shape; the identity where the shapes are equal."""
        if student == teacher:
            return nn.Identity()
        return feature_maps.Regressor(student, teacher, relu=False)

    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """Squared hinges of the connected map."""
        assert helper is not None
        return boundary_loss(helper(student), teacher, self.margin)


class AB(LabelMethod):
    """The labels' cross entropy, after a prelude on the activation boundaries of all stages.

    Heo et al. 2019, arXiv 1811.03233: the prelude trains the student's stages on `ABInit` alone;
    after it there is no distillation loss. 30 epochs, weight 1 and margin 1 are the CRD
    benchmark's. To distil logits afterwards, combine it with `kd`. `settled_norm` reproduces the
    benchmark's prelude for wide residual networks exactly; see `ABInit`.
    """

    title: ClassVar[str] = "Heo et al. 2019, arXiv 1811.03233"
    cost: ClassVar[str] = "nothing; before: B K K H W per stage"
    name: Literal["ab"] = "ab"
    weight: Schedule = 1.0
    """Factor of the prelude's loss, by epoch of the prelude."""
    margin: float = Field(default=1.0, gt=0, le=Limits.WEIGHT)
    """Margin m of the squared hinges, in units of the pre-activations."""
    init_epochs: int = Field(default=30, gt=0, le=Limits.EPOCHS)
    """Length of the prelude in epochs."""
    settled_norm: bool = False
    """Keep the batch norm after the last stage in evaluation mode; for wide residual networks."""

    def prelude(self) -> Prelude:
        """Training of the student's stages on the activation boundaries."""
        fields = self.model_dump(include={"weight", "margin", "settled_norm"})
        return Prelude(ABInit(**fields), self.init_epochs)

    def check(self, student: Shapes, teacher: Shapes) -> None:
        """Raise `ConfigError` where a stage of the student would stay untrained."""
        feature_maps.require_all_stages(student, teacher, self.name)
