"""The flow of solution procedure: how two successive maps go together.

Shapes: B batch, K channels, H, W pixels.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.core.record import Limits
from raykd.core.types import NOTHING, Batch, Outputs, Shapes, Signal
from raykd.methods import feature_maps
from raykd.methods.base import Method, Prelude, Schedule, full_precision, precise, value_at


def flow(shallow: Tensor, deep: Tensor) -> Tensor:
    """Mean products over pixels of every channel of two maps, [B, K_shallow, K_deep].

    The larger map is averaged down first.
    """
    shallow, deep = feature_maps.met(shallow, deep)
    return shallow.flatten(2) @ deep.flatten(2).mT / (deep.shape[2] * deep.shape[3])


def flow_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """The mean squared difference of two flows, each from a shallow and a deep map."""
    return F.mse_loss(flow(*student), flow(*teacher))


class FSPInit(Method):
    """weight * sum over successive spots of mean((G_student - G_teacher)**2): `FSP`'s prelude.

    G[k, l] is the mean over pixels of the product of channel k of one spot and channel l of the
    next; the spots are the stem and all stages.
    """

    title: ClassVar[str] = "Yim et al. 2017, CVPR"
    cost: ClassVar[str] = "B K_shallow K_deep H W per stage"
    label_weight: ClassVar[Schedule] = 0.0
    trains: ClassVar[Literal["student", "backbone", "helpers"]] = "backbone"

    name: Literal["fsp_init"] = "fsp_init"
    weight: Schedule = 50.0  # over the prelude's own epochs

    def needs(self) -> Signal:
        """Stage outputs."""
        return Signal.FEATURES

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """No helpers; raises `ConfigError` where the networks do not suit the method."""
        check(student, teacher)
        return nn.ModuleDict()

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """One loss per pair of successive spots, at the deeper one."""
        weight = value_at(self.weight, batch.epoch)
        spots = _spots(student.features, teacher.features)
        with full_precision(student.logits):
            mine = {spot: precise(student.features[spot]) for spot in spots}
            theirs = {spot: precise(teacher.features[spot]) for spot in spots}
            return {
                deep: weight * flow_loss((mine[one], mine[deep]), (theirs[one], theirs[deep]))
                for one, deep in pairwise(spots)
            }


class FSP(Method):
    """The labels' cross entropy, from a student whose stages have first learned the flows.

    Yim et al. 2017 (CVPR): the prelude trains the student's stages on `FSPInit` alone; then this
    method has no loss of its own. 30 epochs and the prelude's weight 50 are the CRD benchmark's.
    Both networks must have the same numbers of channels.
    """

    title: ClassVar[str] = "Yim et al. 2017, CVPR"
    cost: ClassVar[str] = "nothing; before: B K K H W per stage"

    name: Literal["fsp"] = "fsp"
    weight: Schedule = 50.0  # the prelude's, over its own epochs
    init_epochs: int = Field(default=30, gt=0, le=Limits.EPOCHS)  # the prelude's length

    def needs(self) -> Signal:
        """No signals: the prelude does all the distilling."""
        return Signal(0)

    def prelude(self) -> Prelude:
        """The training of the student's stages on the flows."""
        return Prelude(FSPInit(weight=self.weight), self.init_epochs)

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """No helpers; raises `ConfigError` where the networks do not suit the method."""
        check(student, teacher)
        return nn.ModuleDict()

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """No losses after the prelude."""
        return NOTHING


def check(student: Shapes, teacher: Shapes) -> None:
    """Raise `ConfigError` where the spots of the two networks differ in their channels."""
    feature_maps.covered(student, teacher, "fsp")
    for spot in _spots(student.features, teacher.features):
        mine, theirs = student.features[spot][0], teacher.features[spot][0]
        if mine != theirs:
            raise ConfigError(
                f"method 'fsp' needs equal numbers of channels, and at {spot!r} the student has "
                f"{mine} and the teacher {theirs}. Choose two networks of one width, such as "
                "resnet20 and resnet56, or another method."
            )


def _spots(student: Mapping[str, object], teacher: Mapping[str, object]) -> list[str]:
    """The stem and the stages that both networks have, in depth order."""
    stem = ["stem"] if "stem" in student and "stem" in teacher else []
    return [*stem, *feature_maps.stages(student, teacher)]
