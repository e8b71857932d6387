"""Flow of solution procedure: Gram matrices between successive maps.

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
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods import feature_maps
from raykd.methods.base import (
    LabelMethod,
    Method,
    Prelude,
    Schedule,
    Stages,
    Trains,
    full_precision,
    precise,
    value_at,
)


def flow(shallow: Tensor, deep: Tensor) -> Tensor:
    """Gram matrix [B, K_shallow, K_deep]: products of channels, averaged over pixels.

    The larger map is average-pooled first.
    """
    shallow, deep = feature_maps.match_sizes(shallow, deep)
    return shallow.flatten(2) @ deep.flatten(2).mT / (deep.shape[2] * deep.shape[3])


def flow_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared difference of two flows, each from a shallow and a deep map."""
    return F.mse_loss(flow(*student), flow(*teacher))


class FSPInit(Method):
    """weight * sum over successive spots of mean((G_student - G_teacher)**2): `FSP`'s prelude.

    G[k, l] is the mean over pixels of the product of channel k of one spot and channel l of the
    next; the spots are the stem and all stages.
    """

    title: ClassVar[str] = "Yim et al. 2017, CVPR"
    cost: ClassVar[str] = "B K_shallow K_deep H W per stage"
    label_weight: ClassVar[Schedule] = 0.0
    trains: ClassVar[Trains] = "backbone"

    name: Literal["fsp_init"] = "fsp_init"
    weight: Schedule = 50.0
    """Factor of the loss, by epoch of the prelude."""

    def needs(self) -> Signal:
        """Stage outputs."""
        return Signal.FEATURES

    def check(self, student: Shapes, teacher: Shapes) -> None:
        """Raise `ConfigError` where the spots of the two networks differ in their channels."""
        _check_channels(student, teacher)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """One loss per pair of successive spots, at the deeper one."""
        weight = value_at(self.weight, batch.epoch)
        spots = _spots(student.features, teacher.features)
        with full_precision(student.any_tensor):
            maps_s = [precise(student.features[spot]) for spot in spots]
            maps_t = [precise(teacher.features[spot]) for spot in spots]
            pairs = zip(spots[1:], pairwise(maps_s), pairwise(maps_t), strict=True)
            return {deep: weight * flow_loss(pair_s, pair_t) for deep, pair_s, pair_t in pairs}


class FSP(LabelMethod):
    """The labels' cross entropy, after a prelude on the flows between all stages.

    Yim et al. 2017 (CVPR): the prelude trains the student's stages on `FSPInit` alone; after it
    there is no distillation loss. 30 epochs and the prelude's weight 50 are the CRD benchmark's.
    Both networks must have the same numbers of channels.
    """

    title: ClassVar[str] = "Yim et al. 2017, CVPR"
    cost: ClassVar[str] = "nothing; before: B K K H W per stage"

    name: Literal["fsp"] = "fsp"
    weight: Schedule = 50.0
    """Factor of the prelude's loss, by epoch of the prelude."""
    init_epochs: int = Field(default=30, gt=0, le=Limits.EPOCHS)
    """Length of the prelude in epochs."""

    def prelude(self) -> Prelude:
        """Training of the student's stages on the flows."""
        return Prelude(FSPInit(weight=self.weight), self.init_epochs)

    def check(self, student: Shapes, teacher: Shapes) -> None:
        """Raise `ConfigError` where the spots of the two networks differ in their channels."""
        _check_channels(student, teacher)


def _check_channels(student: Shapes, teacher: Shapes) -> None:
    """Raise `ConfigError` where the spots of the two networks differ in their channels."""
    feature_maps.require_all_stages(student, teacher, "fsp")
    for spot in _spots(student.features, teacher.features):
        width_s, width_t = student.features[spot][0], teacher.features[spot][0]
        if width_s != width_t:
            raise ConfigError(
                f"method 'fsp' needs equal numbers of channels, and at {spot!r} the student has "
                f"{width_s} and the teacher {width_t}. Choose two networks of one width, such as "
                "resnet20 and resnet56, or another method."
            )


def _spots(student: Stages, teacher: Stages) -> list[str]:
    """The stem and the stages that both networks have, in depth order."""
    stem = ["stem"] if "stem" in student and "stem" in teacher else []
    return [*stem, *feature_maps.shared_stages(student, teacher)]
