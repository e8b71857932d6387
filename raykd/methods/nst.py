"""Neuron selectivity transfer: maximum mean discrepancy between channels.

Shapes: B batch, K channels, H, W pixels.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from raykd.methods import feature_maps
from raykd.methods.base import Schedule
from raykd.methods.columns import FromColumns, StageMaps
from raykd.methods.derived import Derived


def selectivity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy (MMD) of the channels of two maps [B, K, H, W].

    Samples of the two distributions are the channels, as vectors over the pixels with L2 norm 1;
    the kernel is k(a, b) = (a . b)**2. Averaged over B; the larger map is average-pooled first. A
    channel of zeros is a sample at 0.
    """
    student, teacher = feature_maps.match_sizes(student, teacher)
    student = F.normalize(student.flatten(2), dim=2, eps=1e-12)
    teacher = F.normalize(teacher.flatten(2), dim=2, eps=1e-12)
    (width_s, pixels), width_t = student.shape[1:], teacher.shape[1]
    # The sum of (a . b)**2 over rows a of A and b of B is <A^T A, B^T B>: use matrices over pairs
    # of pixels or over pairs of channels, whichever are smaller.
    if 2 * pixels**2 <= width_s**2 + width_t**2 + width_s * width_t:
        gap = _gram(student.mT, student.mT) / width_s - _gram(teacher.mT, teacher.mT) / width_t
        return gap.square().sum((1, 2)).mean()
    return _kernel(teacher, teacher) + _kernel(student, student) - 2 * _kernel(student, teacher)


def _gram(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of all pairs of rows."""
    return one @ other.mT


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    """Kernel averaged over all pairs of channels and over B."""
    return _gram(one, other).square().mean()


class NST(FromColumns, feature_maps.StageMethod):
    """weight * sum over stages of MMD**2 between the two networks' channels, kernel (a . b)**2.

    mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over channels with L2 norm 1; the first term
    is constant. Huang and Wang 2017, arXiv 1707.01219, with their
    polynomial kernel (d = 2, c = 0). Weight 50 is the CRD benchmark's.
    """

    title: ClassVar[str] = "Huang and Wang 2017, arXiv 1707.01219"
    cost: ClassVar[str] = "B K H W min(K, H W) per stage"

    name: Literal["nst"] = "nst"
    weight: Schedule = 50.0

    def columns(self) -> tuple[Derived, ...]:
        """The maps of all stages."""
        return (StageMaps(),)

    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """Squared MMD of the channels."""
        return selectivity_loss(student, teacher)
