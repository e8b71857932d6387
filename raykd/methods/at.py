"""Attention transfer: matching spatial attention maps.

Shapes: B batch, K channels, H, W pixels.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Shapes
from raykd.methods import feature_maps
from raykd.methods.base import Schedule
from raykd.methods.columns import ATTENTION, AttentionMaps, FromColumns
from raykd.methods.derived import Derived


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the attention maps of features [B, K, H, W].

    Averaged over B and pixels; the larger map is average-pooled first. The attention of a map of
    zeros is 0.
    """
    student, teacher = feature_maps.match_sizes(student, teacher)
    return (
        (feature_maps.attention_map(student) - feature_maps.attention_map(teacher)).square().mean()
    )


def stored_attention_loss(student: Tensor, attention: Tensor) -> Tensor:
    """`attention_loss` of maps [B, K, H, W] and an attention map [B, 1, h, w] that is no larger."""
    student = feature_maps.pool_to(student, (attention.shape[2], attention.shape[3]))
    return (feature_maps.attention_map(student) - attention.flatten(1)).square().mean()


class AT(FromColumns, feature_maps.StageMethod):
    """weight * sum over stages of mean((Q(student) - Q(teacher))**2), Q(f) = |f|**2 per pixel.

    Q is the sum of squares over channels, with L2 norm 1 over the pixels. Zagoruyko and Komodakis
    2017, arXiv 1612.03928. The paper has the norm of the difference; its code and all benchmarks
    have this mean of squares. Weight 1000 is the CRD benchmark's.
    """

    title: ClassVar[str] = "Zagoruyko and Komodakis 2017, arXiv 1612.03928"
    cost: ClassVar[str] = "B K H W per stage"

    name: Literal["at"] = "at"
    weight: Schedule = 1000.0

    def columns(self) -> tuple[Derived, ...]:
        """The attention maps."""
        return (AttentionMaps(),)

    def maps_of_teacher(self, teacher: Outputs) -> Mapping[str, Tensor]:
        """The attention maps, or the maps that they are of."""
        if self.source == "live":
            return teacher.features
        names = [name for name in teacher.derived if name.endswith(ATTENTION)]
        return {name.removesuffix(ATTENTION): teacher.derived[name] for name in names}

    def compared(self, student: Shapes, teacher: Shapes) -> list[str]:
        """The shared stages. Raises `ConfigError` where a stored map would have to be pooled."""
        stages = super().compared(student, teacher)
        for stage in stages if self.source == "cache" else ():
            _, *size = student.features[stage]
            _, height, width = teacher.features[stage]
            if height > size[0] or width > size[1]:
                raise ConfigError(
                    f"method 'at' compares at the smaller size, and the teacher's {stage} is of "
                    f"{height} x {width} pixels, the student's of {size[0]} x {size[1]}: "
                    "its attention has to be computed of the pooled map; set method.source to live"
                )
        return stages

    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """Mean squared difference of the attention maps."""
        return (stored_attention_loss if self.source == "cache" else attention_loss)(
            student, teacher
        )
