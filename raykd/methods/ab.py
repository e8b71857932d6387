"""Activation boundaries: the student's neurons are active where the teacher's are.

Shapes: B batch, K channels, H, W pixels.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import NOTHING, Batch, Outputs, Shapes, Signal
from raykd.methods import feature_maps
from raykd.methods.base import Method, Prelude, Schedule

SCALE = 3 / 1000  # factor of every stage's loss; the CRD benchmark's


def boundary_loss(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Squared hinges of pre-activations [B, K, H, W]: summed over one sample, averaged over B.

    (s + margin)**2 where the teacher is not active (t <= 0) and s > -margin; (s - margin)**2
    where it is and s < margin.
    """
    # One hinge, turned round where the teacher is active: half the work of two and a choice.
    turn = 1 - 2 * (teacher > 0).to(student.dtype)
    return F.relu(turn * student + margin).square().sum() / len(student)


class ABInit(feature_maps.StageMethod):
    """weight * sum over stages k = 1..K of 2**(k - K) * 0.003 * hinges: the prelude of `AB`.

    The hinges are `boundary_loss` on pre-activations, summed over one sample's neurons. That of a
    wide residual network's last stage is behind a norm that belongs to no stage. It takes the
    batch's statistics here, as in every training. The CRD benchmark's code trains the stages alone
    and leaves that norm in evaluation mode, with the mean 0 and the variance 1 that it was made
    with: `settled_norm`. Of wrn_16_2 below wrn_40_2, both as they are drawn, the last stage's loss
    for 64 images of noise was 64.6 with it and 47.3 without. For other networks it changes nothing.
    """

    title: ClassVar[str] = "Heo et al. 2019, arXiv 1811.03233"
    cost: ClassVar[str] = "B K H W per stage, and the connectors'"
    label_weight: ClassVar[Schedule] = 0.0
    trains: ClassVar[Literal["student", "backbone", "helpers"]] = "backbone"
    before_relu: ClassVar[bool] = True
    doubling: ClassVar[bool] = True
    factor: ClassVar[float] = SCALE

    name: Literal["ab_init"] = "ab_init"
    weight: Schedule = 1.0  # over the prelude's own epochs
    margin: float = Field(default=1.0, gt=0, le=Limits.WEIGHT)  # in units of the pre-activations
    settled_norm: bool = False  # the norm after the last stage stays in evaluation mode

    def head_in_eval_mode(self) -> bool:
        """True with `settled_norm`."""
        return self.settled_norm

    def compared(self, student: Shapes, teacher: Shapes) -> list[str]:
        """All stages of the student. Raises `ConfigError` where one would not be trained."""
        return feature_maps.covered(student, teacher, "ab")

    def stage_helper(self, student: feature_maps.Shape, teacher: feature_maps.Shape) -> nn.Module:
        """The connector to the teacher's shape; nothing is done where the student has it."""
        if student == teacher:
            return nn.Identity()
        return feature_maps.Regressor(student, teacher, relu=False)

    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """The squared hinges of the connected map."""
        assert helper is not None
        return boundary_loss(helper(student), teacher, self.margin)


class AB(Method):
    """The labels' cross entropy, from a student whose stages know the teacher's boundaries.

    Heo et al. 2019, arXiv 1811.03233: the prelude trains the student's stages on `ABInit` alone;
    then this method has no loss of its own. 30 epochs, weight 1 and margin 1 are the CRD
    benchmark's. To distil logits afterwards, combine it with `kd`. `settled_norm` is its code's
    prelude for wide residual networks to the last detail; see `ABInit`.
    """

    title: ClassVar[str] = "Heo et al. 2019, arXiv 1811.03233"
    cost: ClassVar[str] = "nothing; before: B K K H W per stage"
    name: Literal["ab"] = "ab"
    weight: Schedule = 1.0  # the prelude's, over its own epochs
    margin: float = Field(default=1.0, gt=0, le=Limits.WEIGHT)  # in units of the pre-activations
    init_epochs: int = Field(default=30, gt=0, le=Limits.EPOCHS)  # the prelude's length
    settled_norm: bool = False  # the norm after the last stage stays in evaluation mode

    def needs(self) -> Signal:
        """No signals: the prelude does all the distilling."""
        return Signal(0)

    def prelude(self) -> Prelude:
        """The training of the student's stages on the boundaries."""
        how = {"weight": self.weight, "margin": self.margin, "settled_norm": self.settled_norm}
        return Prelude(ABInit(**how), self.init_epochs)

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """No helpers; raises `ConfigError` where the networks do not suit the method."""
        feature_maps.covered(student, teacher, self.name)
        return nn.ModuleDict()

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """No losses after the prelude."""
        return NOTHING
