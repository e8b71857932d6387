"""Attention transfer: matching spatial attention maps.

Shapes: B batch, K channels, H, W pixels.
"""

from typing import ClassVar, Literal

from torch import Tensor, nn

from raykd.methods import feature_maps
from raykd.methods.base import Schedule


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the attention maps of features [B, K, H, W].

    Averaged over B and pixels; the larger map is average-pooled first. The attention of a map of
    zeros is 0.
    """
    student, teacher = feature_maps.match_sizes(student, teacher)
    return (
        (feature_maps.attention_map(student) - feature_maps.attention_map(teacher)).square().mean()
    )


class AT(feature_maps.StageMethod):
    """weight * sum over stages of mean((Q(student) - Q(teacher))**2), Q(f) = |f|**2 per pixel.

    Q is the sum of squares over channels, with L2 norm 1 over the pixels. Zagoruyko and Komodakis
    2017, arXiv 1612.03928. The paper has the norm of the difference; its code and all benchmarks
    have this mean of squares. Weight 1000 is the CRD benchmark's.
    """

    title: ClassVar[str] = "Zagoruyko and Komodakis 2017, arXiv 1612.03928"
    cost: ClassVar[str] = "B K H W per stage"

    name: Literal["at"] = "at"
    weight: Schedule = 1000.0

    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """Mean squared difference of the attention maps."""
        return attention_loss(student, teacher)
