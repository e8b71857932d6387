"""Instance relationship graph: vertices, edges, and transformations between stages.

Shapes: B batch, K channels, H, W pixels, D embedding width.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods import feature_maps
from raykd.methods.base import Schedule, Stages, full_precision, precise, value_at
from raykd.methods.columns import FromColumns, StageMaps
from raykd.methods.derived import Derived

_SMALLEST = 1e-12


def edges(features: Tensor) -> Tensor:
    """Squared distances [B, B] between the samples [B, ...], divided by the largest one."""
    flat = features.flatten(1)
    flat = flat - flat.mean(0)
    squares = flat.square().sum(1)
    squared = (squares[:, None] + squares - 2 * flat @ flat.T).clamp_min(0)
    squared = squared - squared.diagonal().diag()
    return squared / squared.max().clamp_min(_SMALLEST)


def transformation(earlier: Tensor, later: Tensor) -> Tensor:
    """Squared distance of each sample between two stages [B], divided by the largest one.

    The earlier map is pooled to the later one's size; neighbouring channels of the wider map are
    averaged.
    """
    pooled = F.adaptive_avg_pool2d(earlier, (later.shape[2], later.shape[3]))
    channels = min(pooled.shape[1], later.shape[1])
    difference = _average_channels(pooled, channels) - _average_channels(later, channels)
    squared = difference.square().sum((1, 2))
    return squared / squared.max().clamp_min(_SMALLEST)


def _average_channels(features: Tensor, channels: int) -> Tensor:
    """Maps [B, K, H, W] with neighbouring channels averaged, flat: [B, H W, channels]."""
    flat = features.flatten(2).mT
    return flat if flat.shape[2] == channels else F.adaptive_avg_pool1d(flat, channels)


class IRG(FromColumns):
    """vertex * MSE of logits + edge * MSE of edges + transformation * MSE of transformations.

    Liu et al. 2019, "Knowledge distillation via instance relationship graph", CVPR 2019, as in
    the Knowledge-Distillation-Zoo, the source of the weights: edges are averaged over the last two
    stages and the embedding; the transformation is between the two stages. Distances are computed
    from inner products of centred features, not from [B, B, K H W] differences.
    """

    title: ClassVar[str] = "Liu et al. 2019, CVPR"
    cost: ClassVar[str] = "B^2 (K H W + D)"
    joint: ClassVar[bool] = True

    name: Literal["irg"] = "irg"
    vertex: float = Field(default=0.1, ge=0, le=Limits.WEIGHT)
    """Weight of the logits' mean squared difference."""
    edge: float = Field(default=5.0, ge=0, le=Limits.WEIGHT)
    """Weight of the difference of distances between samples."""
    transformation: float = Field(default=5.0, ge=0, le=Limits.WEIGHT)
    """Weight of the difference of what a stage changes from one to the next."""
    weight: Schedule = 1.0
    """Factor of all three terms: a number, [[first epoch, value], ...], or a ramp."""

    def columns(self) -> tuple[Derived, ...]:
        """The maps of the last two stages."""
        return (StageMaps(deepest=2),)

    def student_needs(self) -> Signal:
        """Logits, embeddings and stages."""
        return Signal.LOGITS | Signal.EMBEDDING | Signal.FEATURES

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """The last two stages, the embedding and the logits."""
        stages = (feature_maps.deepest_stages(network, 2) for network in (student, teacher))
        return {**dict(zip(*stages, strict=True)), "embedding": "embedding", "logits": "logits"}

    def check(self, student: Shapes, teacher: Shapes) -> None:
        """Raise `ConfigError` where a network has fewer than two stages."""
        for who, shapes in (("student", student), ("teacher", teacher)):
            if len(shapes.features) < 2:
                raise ConfigError(
                    f"method 'irg' reads two stages, and the {who} has {len(shapes.features)}; "
                    "choose a network of `raykd show models`"
                )

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Vertices at "logits", edges at the other spots, the transformation at the last stage."""
        with full_precision(student.logits):
            scale = value_at(self.weight, batch.epoch)
            maps_s, maps_t = map(_last_two, (student.features, self.maps_of_teacher(teacher)))
            vertex = F.mse_loss(precise(student.logits), precise(teacher.logits))
            change = F.mse_loss(transformation(*maps_s.values()), transformation(*maps_t.values()))
            losses = {"logits": scale * self.vertex * vertex}

            # Edges: the spots of the student in depth order, each with the teacher's tensor.
            features_s = {**maps_s, "embedding": precise(student.embedding)}
            features_t = [*maps_t.values(), precise(teacher.embedding)]
            for (spot, feature_s), feature_t in zip(features_s.items(), features_t, strict=True):
                edge = F.mse_loss(edges(feature_s), edges(feature_t))
                losses[spot] = scale * self.edge / len(features_t) * edge

            last = feature_maps.last_stage(maps_s)
            losses[last] = losses[last] + scale * self.transformation * change
            return losses


def _last_two(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Maps of the last two stages, in depth order."""
    return {name: precise(maps[name]) for name in feature_maps.deepest_stages(maps, 2)}
