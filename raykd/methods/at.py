"""Attention transfer: the student looks where the teacher looks.

Shapes: B batch, K channels, H, W pixels.
"""

from typing import ClassVar, Literal

from torch import Tensor, nn

from raykd.methods import feature_maps
from raykd.methods.base import Schedule


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two attention maps, from features [B, K, H, W].

    Averaged over B and pixels; the larger map is averaged down first. A map of zeros has an
    attention of zeros.
    """
    student, teacher = feature_maps.met(student, teacher)
    return (feature_maps.energy(student) - feature_maps.energy(teacher)).square().mean()


class AT(feature_maps.StageMethod):
    """weight * sum over stages of mean((Q(student) - Q(teacher))**2), Q(f) = |f|**2 per pixel.

    Q is the sum of squares over channels, scaled to length 1 over the pixels. Zagoruyko and
    Komodakis 2017, arXiv 1612.03928. Their text has the norm of the difference, their code
    and every benchmark this mean of squares. Weight 1000 is the CRD benchmark's.
    """

    title: ClassVar[str] = "Zagoruyko and Komodakis 2017, arXiv 1612.03928"
    cost: ClassVar[str] = "B K H W per stage"

    name: Literal["at"] = "at"
    weight: Schedule = 1000.0

    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """The mean squared difference of the attention maps."""
        return attention_loss(student, teacher)
