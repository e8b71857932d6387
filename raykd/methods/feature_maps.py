"""Feature maps of two networks: pairs of stages, equal sizes, and losses per stage.

Shapes: B batch, K channels, H, W pixels.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at

Shape = tuple[int, int, int]  # K, H, W


def stages(student: Iterable[str], teacher: Iterable[str]) -> list[str]:
    """The stages that both networks have, in depth order: all after the stem, spots 1 to K."""
    known = set(teacher)
    return [
        name for name in student if name in known and name.startswith("stage") and "." not in name
    ]


def same(student: Iterable[str], teacher: Iterable[str]) -> dict[str, str]:
    """`stages`, each compared with the teacher's of the same name."""
    return {name: name for name in stages(student, teacher)}


def ending(names: Iterable[str], count: int) -> list[str]:
    """The deepest stages, in depth order."""
    return [name for name in names if "." not in name][-count:]


def last(names: Iterable[str]) -> str:
    """The deepest stage, spot -2 of the benchmark's lists."""
    return ending(names, 1)[-1]


def paired(student: Shapes, teacher: Shapes, method: str) -> list[str]:
    """`stages` of two networks. Raises `ConfigError` where they have none in common."""
    both = stages(student.features, teacher.features)
    if not both:
        raise ConfigError(
            f"method {method!r} compares stages, and the student ({_listed(student)}) and the "
            f"teacher ({_listed(teacher)}) have none in common. Choose networks that have stages, "
            "or a method that reads logits or embeddings."
        )
    return both


def covered(student: Shapes, teacher: Shapes, method: str) -> list[str]:
    """`paired`, for a loss that alone trains the student's stages.

    Raises `ConfigError` where the student's last stage has no partner, and would not be trained,
    or where the student's stages are no modules of their own.
    """
    both = paired(student, teacher, method)
    check_sequential(student, method, "trains the student's stages alone")
    if both[-1] != last(student.features):
        raise ConfigError(
            f"method {method!r} trains the student stage by stage, and the student's "
            f"{last(student.features)!r} has no partner in the teacher ({_listed(teacher)}). "
            "Choose a teacher with as many stages."
        )
    return both


def check_sequential(shapes: Shapes, method: str, what: str) -> None:
    """Raise `ConfigError` where a network's stages are no modules that run one after another.

    `what` the method does with them, for the message.
    """
    if not shapes.sequential:
        raise ConfigError(
            f"method {method!r} {what}, and those of one network (a transformer, or another of a "
            "library) are no modules that run one after another. Choose another network, such as "
            "a resnet, or another method."
        )


def deepest(shapes: Shapes, method: str) -> Shape:
    """The shape of the last stage's output. Raises `ConfigError` for a network without stages."""
    if not shapes.features:
        raise ConfigError(
            f"method {method!r} reads the output of the last stage, and one of the networks has "
            "no stages. Choose another network, or a method that reads logits or embeddings."
        )
    return shapes.features[last(shapes.features)]


def shape(shapes: Shapes, stage: str, method: str) -> Shape:
    """The shape of a stage's output. Raises `ConfigError` where the network has no such stage."""
    if stage not in shapes.features:
        raise ConfigError(
            f"method {method!r} reads the stage {stage!r}, and one of the networks has only: "
            f"{_listed(shapes)}. Choose a stage, or networks, such that both have it."
        )
    return shapes.features[stage]


def met(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [B, K, H, W], the larger of them averaged down to the smaller one's H and W."""
    size = smaller(student.shape, teacher.shape)
    return _averaged(student, size), _averaged(teacher, size)


def smaller(one: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """The H and W that two maps are averaged down to, from shapes that end with theirs."""
    return min(one[-2], other[-2]), min(one[-1], other[-1])


def _averaged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)


class Regressor(nn.Sequential):
    """A convolution that brings maps from one shape to another, a batch norm, and a ReLU.

    The ConvReg of the CRD benchmark (RepDistiller), for FitNet's hints and SAKD's adapters:
    3 x 3 with stride 2 to half the size, 4 x 4 transposed with stride 2 to twice the size,
    otherwise the kernel of stride 1 (or of a transposed convolution) that meets the size. Where one
    side grows and the other shrinks, the latter is averaged down before.
    """

    def __init__(self, shape_in: Shape, shape_out: Shape, *, relu: bool = True) -> None:
        (width_in, *size_in), (width, *size) = shape_in, shape_out
        if size_in == [2 * side for side in size]:
            fit: nn.Module = nn.Conv2d(width_in, width, 3, 2, 1)
        elif [2 * side for side in size_in] == size:
            fit = nn.ConvTranspose2d(width_in, width, 4, 2, 1)
        elif smaller(shape_in, shape_out) == tuple(size):
            fit = nn.Conv2d(width_in, width, _kernel(shape_in, shape_out))
        else:
            least = smaller(shape_in, shape_out)
            stride = size[0] // least[0], size[1] // least[1]
            kernel = _transposed_kernel((width_in, *least), shape_out, stride)
            fit = nn.ConvTranspose2d(width_in, width, kernel, stride)
            if least != tuple(size_in):
                fit = nn.Sequential(nn.AdaptiveAvgPool2d(least), fit)
        super().__init__(fit, nn.BatchNorm2d(width), *([nn.ReLU()] if relu else []))


def _listed(shapes: Shapes) -> str:
    return ", ".join(shapes.features) or "no stages"


def _kernel(shape_in: Shape, shape_out: Shape) -> tuple[int, int]:
    """The kernel with which stride 1 and no padding meet a smaller size."""
    return 1 + shape_in[1] - shape_out[1], 1 + shape_in[2] - shape_out[2]


def _transposed_kernel(
    shape_in: Shape, shape_out: Shape, stride: tuple[int, int]
) -> tuple[int, int]:
    """The kernel with which a transposed convolution without padding meets a larger size."""
    height, width = (
        size - (size_in - 1) * step
        for size_in, size, step in zip(shape_in[1:], shape_out[1:], stride, strict=True)
    )
    return height, width


def energy(maps: Tensor) -> Tensor:
    """Attention map: the mean square over channels, flat and of length 1, [B, H W].

    Zagoruyko and Komodakis 2017 (arXiv 1612.03928), section 3.1, with p = 2; a mean in place
    of the sum, which the length takes out again.
    """
    return F.normalize(maps.square().mean(dim=1).flatten(1), dim=1, eps=1e-12)


def added(losses: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Losses by spot, those at the same spot added up."""
    total: dict[str, Tensor] = {}
    for part in losses:
        for spot, loss in part.items():
            total[spot] = total[spot] + loss if spot in total else loss
    return total


class StageMethod(Method):
    """weight * sum over the stages that both networks have of a loss on their maps. Abstract."""

    before_relu: ClassVar[bool] = False  # the maps are pre-activations
    doubling: ClassVar[bool] = (
        False  # the last stage has the factor 1, each before it half the next's
    )
    factor: ClassVar[float] = 1.0  # factor of every stage's loss

    weight: Schedule

    @abstractmethod
    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """The loss of one stage, a scalar, from maps [B, K, H, W] in full precision."""

    def stage_helper(self, student: Shape, teacher: Shape) -> nn.Module | None:
        """The module of one stage that is trained with the student, from the maps' shapes."""
        return None

    def needs(self) -> Signal:
        """Stage outputs, or what they are before their last ReLU."""
        return Signal.PREACTIVATIONS if self.before_relu else Signal.FEATURES

    def spots(
        self, student: Mapping[str, object], teacher: Mapping[str, object]
    ) -> Mapping[str, str]:
        """The stages that both networks have."""
        return same(student, teacher)

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """A helper for each stage that both networks have, or none at all."""
        made = {
            stage: self.stage_helper(student.features[stage], teacher.features[stage])
            for stage in self.compared(student, teacher)
        }
        return nn.ModuleDict({stage: one for stage, one in made.items() if one is not None})

    def compared(self, student: Shapes, teacher: Shapes) -> list[str]:
        """The stages that are compared. Raises `ConfigError` where the networks do not suit."""
        return paired(student, teacher, self.name)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """One loss per stage, at the stage."""
        weight = value_at(self.weight, batch.epoch) * self.factor
        end = ".pre" if self.before_relu else ""
        compared = [*helpers] or stages(student.features, teacher.features)
        losses: dict[str, Tensor] = {}
        with full_precision(student.logits):
            for number, stage in enumerate(compared, start=1):
                loss = self.stage_loss(
                    precise(student.features[stage + end]),
                    precise(teacher.features[stage + end]),
                    helpers[stage] if helpers else None,
                )
                share = 2.0 ** (number - len(compared)) if self.doubling else 1.0
                losses[stage] = weight * share * loss
        return losses
