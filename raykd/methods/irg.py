"""Instance relationship graph: vertices, edges and how edges change from stage to stage.

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
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at

_SMALLEST = 1e-12


def edges(features: Tensor) -> Tensor:
    """Squared distances [B, B] between the samples of [B, ...], over the largest one."""
    flat = features.flatten(1)
    flat = flat - flat.mean(0)
    squares = flat.square().sum(1)
    squared = (squares[:, None] + squares - 2 * flat @ flat.T).clamp_min(0)
    squared = squared - squared.diagonal().diag()
    return squared / squared.max().clamp_min(_SMALLEST)


def transformation(earlier: Tensor, later: Tensor) -> Tensor:
    """Squared distance of each sample between two stages [B], over the largest one.

    The earlier map is pooled to the later one's size; where one has more channels, neighbouring
    ones of it are averaged.
    """
    pooled = F.adaptive_avg_pool2d(earlier, (later.shape[2], later.shape[3]))
    channels = min(pooled.shape[1], later.shape[1])
    moved = (_narrowed(pooled, channels) - _narrowed(later, channels)).square().sum((1, 2))
    return moved / moved.max().clamp_min(_SMALLEST)


def _narrowed(features: Tensor, channels: int) -> Tensor:
    """Maps [B, K, H, W] with neighbouring channels averaged, flat: [B, H W, channels]."""
    flat = features.flatten(2).mT
    return flat if flat.shape[2] == channels else F.adaptive_avg_pool1d(flat, channels)


class IRG(Method):
    """vertex * MSE of logits + edge * MSE of edges + transformation * MSE of transformations.

    Liu et al. 2019, "Knowledge distillation via instance relationship graph", CVPR 2019, as in
    the Knowledge-Distillation-Zoo, whose weights these are: edges are the mean of those of the last
    two stages and the embedding; the transformation is that between the two stages. Distances go
    through inner products of centred features, not through [B, B, K H W] differences.
    """

    title: ClassVar[str] = "Liu et al. 2019, CVPR"
    cost: ClassVar[str] = "B^2 (K H W + D)"
    joint: ClassVar[bool] = True

    name: Literal["irg"] = "irg"
    vertex: float = Field(default=0.1, ge=0, le=Limits.WEIGHT)
    edge: float = Field(default=5.0, ge=0, le=Limits.WEIGHT)
    transformation: float = Field(default=5.0, ge=0, le=Limits.WEIGHT)
    weight: Schedule = 1.0  # weight of all three terms

    def needs(self) -> Signal:
        """Logits, embeddings and stages."""
        return Signal.LOGITS | Signal.EMBEDDING | Signal.FEATURES

    def spots(
        self, student: Mapping[str, object], teacher: Mapping[str, object]
    ) -> Mapping[str, str]:
        """The last two stages, the embedding and the logits."""
        ends = zip(feature_maps.ending(student, 2), feature_maps.ending(teacher, 2), strict=True)
        return {**dict(ends), "embedding": "embedding", "logits": "logits"}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """No helpers. Raises `ConfigError` where a network has fewer than two stages."""
        for who, shapes in (("student", student), ("teacher", teacher)):
            if len(shapes.features) < 2:
                raise ConfigError(
                    f"method 'irg' reads two stages, and the {who} has {len(shapes.features)}; "
                    "choose a network of `raykd show models`"
                )
        return nn.ModuleDict()

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Vertices at "logits", edges at "embedding" and the last two stages, the rest there."""
        with full_precision(student.logits):
            scale = value_at(self.weight, batch.epoch)
            vertex = F.mse_loss(precise(student.logits), precise(teacher.logits))
            own, theirs = _last_two(student), _last_two(teacher)
            moved = F.mse_loss(transformation(*own.values()), transformation(*theirs.values()))
            losses = {"logits": scale * self.vertex * vertex}
            pairs = [*zip(own.items(), theirs.values(), strict=True)]
            embedding = precise(student.embedding), precise(teacher.embedding)
            pairs.append((("embedding", embedding[0]), embedding[1]))
            for (spot, mine), other in pairs:
                losses[spot] = (
                    scale * self.edge / len(pairs) * F.mse_loss(edges(mine), edges(other))
                )
            last = feature_maps.last(own)
            losses[last] = losses[last] + scale * self.transformation * moved
            return losses


def _last_two(outputs: Outputs) -> dict[str, Tensor]:
    """The maps of the last two stages, in depth order."""
    names = feature_maps.ending(outputs.features, 2)
    return {name: precise(outputs.features[name]) for name in names}
