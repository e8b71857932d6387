"""Knowledge review: shallow maps of the student, fused with deeper ones, match the teacher's.

Shapes: B batch, D embedding width, K channels, H, W pixels.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods import feature_maps
from raykd.methods.base import (
    Schedule,
    Stages,
    full_precision,
    precise,
    value_at,
    warmup_factor,
)
from raykd.methods.columns import FromColumns, StageMaps
from raykd.methods.derived import Derived

WIDEST = 512  # most channels of a fused map, as in the authors' code


def hierarchical_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """HCL: weighted mean of the mean squared errors of two maps [B, K, H, W] at several sizes.

    Full size has weight 1; average pools to 4, 2 and 1 pixels a side, if smaller than the map,
    have the weights 1/2, 1/4 and 1/8 in this order.
    """
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for side in (4, 2, 1):
        if side < student.shape[2]:
            weight /= 2
            pooled_s, pooled_t = (F.adaptive_avg_pool2d(x, side) for x in (student, teacher))
            total = total + weight * F.mse_loss(pooled_s, pooled_t)
            weights += weight
    return total / weights


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a student's map with the fused map of the deeper stage."""

    def __init__(
        self,
        shape_in: feature_maps.Shape,
        shape_out: feature_maps.Shape,
        middle: int,
        deepest: bool,
    ):
        super().__init__()
        self.size = shape_out[1:]
        self.enter = _normed(nn.Conv2d(shape_in[0], middle, 1, bias=False))
        self.attend = None if deepest else nn.Conv2d(2 * middle, 2, 1)
        self.leave = _normed(nn.Conv2d(middle, shape_out[0], 3, padding=1, bias=False))

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Prediction of the teacher's map, and the fused map for the next shallower stage."""
        x = self.enter(x)
        if self.attend is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            shares = self.attend(torch.cat([x, deeper], dim=1)).sigmoid()
            x = x * shares[:, :1] + deeper * shares[:, 1:]
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="nearest")
        return self.leave(x), x


def _normed(conv: nn.Conv2d) -> nn.Sequential:
    """The convolution, with the authors' initialisation, and a batch norm."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))


class ReviewKD(FromColumns):
    """weight * min(1, (epoch + 1) / warmup) * sum over spots of HCL(prediction, teacher).

    The spots are the embedding, as a map of one pixel, and all stages. From the deepest on, a
    `Fusion` joins the student's map with the deeper fused map and predicts the teacher's
    pre-activation; HCL is `hierarchical_loss`. Chen et al. 2021, arXiv 2104.09044.

    Weights of the paper by pair: 5 for wide resnets, resnet32x4 to resnet8x4 and either to
    ShuffleNetV1; 8 for resnet32x4 to ShuffleNetV2; 0.6 for resnet56 to resnet20; 1 for resnet110
    to resnet32; on ImageNet 1 (resnet34 to resnet18) and 8 (resnet50 to MobileNet), with one
    epoch of warm-up. Epochs count from 1, as in mdistiller. The embedding's batch norms need two
    samples on each worker.
    """

    title: ClassVar[str] = "Chen et al. 2021, arXiv 2104.09044"
    cost: ClassVar[str] = "B K K H W per stage"
    joint: ClassVar[bool] = True

    name: Literal["reviewkd"] = "reviewkd"
    weight: Schedule = 1.0
    """Factor of the sum over spots: a number, [[first epoch, value], ...], or a ramp."""
    warmup_epochs: int = Field(default=20, ge=0, le=Limits.EPOCHS)
    """Epochs in which the weight grows linearly to its value; 0: none."""

    def columns(self) -> tuple[Derived, ...]:
        """The pre-activations of all stages."""
        return (StageMaps(before_relu=True),)

    def student_needs(self) -> Signal:
        """Stage outputs, pre-activations and embeddings."""
        return Signal.FEATURES | Signal.PREACTIVATIONS | Signal.EMBEDDING

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """The shared stages and the embedding."""
        shared = feature_maps.shared_stages(student, teacher)
        return {spot: spot for spot in (*shared, "embedding")}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """A fusion for the embedding and for each shared stage."""
        middle = min(WIDEST, student.embedding)
        tops = (student.embedding, 1, 1), (teacher.embedding, 1, 1)
        fusions: dict[str, nn.Module] = {"embedding": Fusion(*tops, middle, deepest=True)}
        for stage in reversed(feature_maps.require_shared_stages(student, teacher, self.name)):
            shapes = student.features[stage], teacher.features[stage]
            fusions[stage] = Fusion(*shapes, middle, deepest=False)
        return nn.ModuleDict(fusions)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """One loss per spot; that of a stage also depends on the deeper spots."""
        weight = value_at(self.weight, batch.epoch) * warmup_factor(batch.epoch, self.warmup_epochs)
        losses: dict[str, Tensor] = {}
        maps = self.maps_of_teacher(teacher)
        with full_precision(student.any_tensor):
            map_s = precise(student.embedding)[:, :, None, None]
            map_t = precise(teacher.embedding)[:, :, None, None]
            prediction, fused = helpers["embedding"](map_s, None)
            losses["embedding"] = weight * hierarchical_loss(prediction, map_t)
            for stage in reversed(feature_maps.shared_stages(student.features, teacher.stages)):
                prediction, fused = helpers[stage](precise(student.features[stage]), fused)
                map_t = precise(maps[f"{stage}.pre"])
                losses[stage] = weight * hierarchical_loss(prediction, map_t)
        return losses
