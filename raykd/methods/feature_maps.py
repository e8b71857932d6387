"""Feature maps of two networks: shared stages, matching sizes, and losses per stage.

Shapes: B batch, K channels, H, W pixels.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.base import Method, Schedule, Stages, full_precision, precise, value_at

Shape = tuple[int, int, int]  # K, H, W


def shared_stages(student: Stages, teacher: Stages) -> list[str]:
    """Stages that both networks have, in depth order, without the stem: spots 1 to K."""
    return [
        name for name in student if name in teacher and name.startswith("stage") and "." not in name
    ]


def deepest_stages(stages: Stages, count: int) -> list[str]:
    """The deepest `count` stages, in depth order."""
    return [name for name in stages if "." not in name][-count:]


def deepest(stages: Stages) -> str:
    """The stage that the last map is of, from stages or from features."""
    *_, last = stages
    return last.partition(".")[0]


def last_stage(stages: Stages) -> str:
    """The deepest stage, spot -2 in the lists of the CRD benchmark."""
    return deepest_stages(stages, 1)[-1]


def require_shared_stages(student: Shapes, teacher: Shapes, method: str) -> list[str]:
    """`shared_stages`. Raises `ConfigError` where there are none."""
    shared = shared_stages(student.features, teacher.features)
    if not shared:
        raise ConfigError(
            f"method {method!r} compares stages, and the student ({_listed(student)}) and the "
            f"teacher ({_listed(teacher)}) have none in common. Choose networks that have stages, "
            "or a method that reads logits or embeddings."
        )
    return shared


def require_all_stages(student: Shapes, teacher: Shapes, method: str) -> list[str]:
    """`shared_stages`, for a loss that alone trains the student's stages.

    Raises `ConfigError` where the teacher lacks the student's last stage, which would then not be
    trained, or where the student's stages are not separate modules.
    """
    shared = require_shared_stages(student, teacher, method)
    check_sequential(student, method, "trains the student's stages alone")
    last = last_stage(student.features)
    if shared[-1] != last:
        raise ConfigError(
            f"method {method!r} trains the student stage by stage, and the student's "
            f"{last!r} has no partner in the teacher ({_listed(teacher)}). "
            "Choose a teacher with as many stages."
        )
    return shared


def check_sequential(shapes: Shapes, method: str, action: str) -> None:
    """Raise `ConfigError` where a network's stages are not modules that run one after another.

    `action`: the method's use of the stages, for the message.
    """
    if not shapes.sequential:
        raise ConfigError(
            f"method {method!r} {action}, and those of one network (a transformer, or another of a "
            "library) are no modules that run one after another. Choose another network, such as "
            "a resnet, or another method."
        )


def last_shape(shapes: Shapes, method: str) -> Shape:
    """Output shape of the last stage. Raises `ConfigError` for a network without stages."""
    if not shapes.features:
        raise ConfigError(
            f"method {method!r} reads the output of the last stage, and one of the networks has "
            "no stages. Choose another network, or a method that reads logits or embeddings."
        )
    return shapes.features[last_stage(shapes.features)]


def map_shape(shapes: Shapes, method: str, blocks: int = 1) -> Shape:
    """Shape of the last map, or of that and the one before it, channel after channel.

    Raises `ConfigError` for a network with too few stages.
    """
    channels, height, width = last_shape(shapes, method)
    if blocks == 1:
        return (channels, height, width)
    earlier = deepest_stages(shapes.features, 2)
    if len(earlier) < 2:
        raise ConfigError(
            f"method {method!r} reads the last two blocks, and the teacher has one stage; leave "
            "blocks out"
        )
    return (channels + shapes.features[earlier[0]][0], height, width)


def stage_shape(shapes: Shapes, stage: str, method: str) -> Shape:
    """Output shape of a stage. Raises `ConfigError` where the network has no such stage."""
    if stage not in shapes.features:
        raise ConfigError(
            f"method {method!r} reads the stage {stage!r}, and one of the networks has only: "
            f"{_listed(shapes)}. Choose a stage, or networks, such that both have it."
        )
    return shapes.features[stage]


def match_sizes(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps [B, K, H, W], average-pooled to the smaller H and W of the two."""
    size = smaller_size(student.shape, teacher.shape)
    return pool_to(student, size), pool_to(teacher, size)


def smaller_size(one: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """Smaller H and smaller W of two shapes [..., H, W]."""
    return min(one[-2], other[-2]), min(one[-1], other[-1])


def pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, K, H, W], average-pooled to `size` (H, W) unless they have it."""
    return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)


def resized(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps [B, K, H, W] at another size, bilinear."""
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, [*size], mode="bilinear")


def pool_or_enlarge(maps: Tensor, size: torch.Size) -> Tensor:
    """Maps [B, K, H, W] at another size: average-pooled where H is larger, otherwise bilinear."""
    return resized(maps, size) if maps.shape[2] < size[0] else pool_to(maps, (size[0], size[1]))


def pooled_to_grid(maps: Tensor, grid: int | None) -> Tensor:
    """Maps [B, K, H, W], average-pooled to `grid` cells a side where they have more."""
    height, width = maps.shape[2:]
    return maps if grid is None else pool_to(maps, (min(grid, height), min(grid, width)))


class Regressor(nn.Sequential):
    """Convolution from maps of one shape to another, batch norm, and ReLU.

    The ConvReg of the CRD benchmark (RepDistiller), for FitNet's hints and SAKD's adapters: 3 x 3
    with stride 2 to half the size, 4 x 4 transposed with stride 2 to twice the size, otherwise
    the kernel with which stride 1 (or a transposed convolution) gives the size. Where one side
    grows and the other shrinks, the latter is average-pooled first.
    """

    def __init__(self, shape_in: Shape, shape_out: Shape, *, relu: bool = True) -> None:
        (width_in, *size_in), (width, *size) = shape_in, shape_out
        if size_in == [2 * side for side in size]:
            fit: nn.Module = nn.Conv2d(width_in, width, 3, 2, 1)
        elif [2 * side for side in size_in] == size:
            fit = nn.ConvTranspose2d(width_in, width, 4, 2, 1)
        elif smaller_size(shape_in, shape_out) == tuple(size):
            fit = nn.Conv2d(width_in, width, _kernel(shape_in, shape_out))
        else:
            pooled = smaller_size(shape_in, shape_out)
            stride = size[0] // pooled[0], size[1] // pooled[1]
            kernel = _transposed_kernel((width_in, *pooled), shape_out, stride)
            fit = nn.ConvTranspose2d(width_in, width, kernel, stride)
            if pooled != tuple(size_in):
                fit = nn.Sequential(nn.AdaptiveAvgPool2d(pooled), fit)
        super().__init__(fit, nn.BatchNorm2d(width), *([nn.ReLU()] if relu else []))


def _listed(shapes: Shapes) -> str:
    return ", ".join(shapes.features) or "no stages"


def _kernel(shape_in: Shape, shape_out: Shape) -> tuple[int, int]:
    """Kernel with which stride 1 and no padding give a smaller size."""
    return 1 + shape_in[1] - shape_out[1], 1 + shape_in[2] - shape_out[2]


def _transposed_kernel(
    shape_in: Shape, shape_out: Shape, stride: tuple[int, int]
) -> tuple[int, int]:
    """Kernel with which a transposed convolution without padding gives a larger size."""
    height, width = (
        size - (size_in - 1) * step
        for size_in, size, step in zip(shape_in[1:], shape_out[1:], stride, strict=True)
    )
    return height, width


def attention_map(maps: Tensor) -> Tensor:
    """Attention map [B, H W] of maps [B, K, H, W]: mean square over channels, with L2 norm 1.

    Zagoruyko and Komodakis 2017 (arXiv 1612.03928), section 3.1, with p = 2; the normalisation
    makes their sum over channels and this mean equal.
    """
    return F.normalize(maps.square().mean(dim=1).flatten(1), dim=1, eps=1e-12)


def sum_by_spot(losses: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sum of losses for each spot."""
    total: dict[str, Tensor] = {}
    for part in losses:
        for spot, loss in part.items():
            total[spot] = total[spot] + loss if spot in total else loss
    return total


class StageMethod(Method):
    """weight * sum over shared stages k of factor * c_k * a loss of their maps. Abstract.

    c_k is 1, or 2**(k - K) with `doubling`, for stages k = 1..K.
    """

    before_relu: ClassVar[bool] = False  # True: the maps are pre-activations
    doubling: ClassVar[bool] = False  # True: each stage counts half as much as the next one
    factor: ClassVar[float] = 1.0  # constant factor of every stage's loss

    weight: Schedule
    """Factor of the sum over stages: a number, [[first epoch, value], ...], or a ramp."""

    @abstractmethod
    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """Loss of one stage, a scalar, from maps [B, K, H, W] in full precision."""

    def stage_helper(self, student: Shape, teacher: Shape) -> nn.Module | None:
        """Module of one stage that is trained with the student, from the shapes of the maps."""
        return None

    def needs(self) -> Signal:
        """Stage outputs, or their pre-activations."""
        return Signal.PREACTIVATIONS if self.before_relu else Signal.FEATURES

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """The shared stages."""
        return {stage: stage for stage in shared_stages(student, teacher)}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """A helper for each shared stage, or none at all."""
        by_stage = {
            stage: self.stage_helper(student.features[stage], teacher.features[stage])
            for stage in self.compared(student, teacher)
        }
        return nn.ModuleDict({stage: one for stage, one in by_stage.items() if one is not None})

    def compared(self, student: Shapes, teacher: Shapes) -> list[str]:
        """Stages that are compared. Raises `ConfigError` where the networks do not suit."""
        return require_shared_stages(student, teacher, self.name)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """One weighted loss per shared stage."""
        weight = value_at(self.weight, batch.epoch) * self.factor
        suffix = ".pre" if self.before_relu else ""
        maps = self.maps_of_teacher(teacher)
        compared = [*helpers] or shared_stages(student.features, teacher.stages)
        losses: dict[str, Tensor] = {}
        with full_precision(student.any_tensor):
            for number, stage in enumerate(compared, start=1):
                loss = self.stage_loss(
                    precise(student.features[stage + suffix]),
                    precise(maps[stage + suffix]),
                    helpers[stage] if helpers else None,
                )
                share = 2.0 ** (number - len(compared)) if self.doubling else 1.0
                losses[stage] = weight * share * loss
        return losses
