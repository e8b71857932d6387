"""Neuron selectivity transfer: the pixels that channels select are distributed alike.

Shapes: B batch, K channels, H, W pixels.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from raykd.methods import feature_maps
from raykd.methods.base import Schedule


def selectivity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two sets of channels, from [B, K, H, W].

    The channels, as vectors over the pixels of length 1, are the samples of the two
    distributions; the kernel is k(a, b) = (a . b)**2. Averaged over B; the larger map is
    averaged down first. A channel of zeros counts as a sample at 0.
    """
    student, teacher = feature_maps.met(student, teacher)
    mine = F.normalize(student.flatten(2), dim=2, eps=1e-12)
    theirs = F.normalize(teacher.flatten(2), dim=2, eps=1e-12)
    (wide, pixels), wide_teacher = mine.shape[1:], theirs.shape[1]
    # The sum of (a . b)**2 over channels a of A and b of B is <A^T A, B^T B>: the discrepancy
    # is read off matrices over pairs of pixels or over pairs of channels, whichever are fewer.
    if 2 * pixels**2 <= wide**2 + wide_teacher**2 + wide * wide_teacher:
        gap = _gram(mine.mT, mine.mT) / wide - _gram(theirs.mT, theirs.mT) / wide_teacher
        return gap.square().sum((1, 2)).mean()
    return _kernel(theirs, theirs) + _kernel(mine, mine) - 2 * _kernel(mine, theirs)


def _gram(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of all pairs of rows."""
    return one @ other.mT


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    """The mean kernel of all pairs of channels, averaged over B."""
    return _gram(one, other).square().mean()


class NST(feature_maps.StageMethod):
    """weight * sum over stages of MMD**2 between the two networks' channels, kernel (a . b)**2.

    mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over channels scaled to length 1; the
    teacher's own term is constant. Huang and Wang 2017, arXiv 1707.01219, with their
    polynomial kernel (d = 2, c = 0). Weight 50 is the CRD benchmark's.
    """

    title: ClassVar[str] = "Huang and Wang 2017, arXiv 1707.01219"
    cost: ClassVar[str] = "B K H W min(K, H W) per stage"

    name: Literal["nst"] = "nst"
    weight: Schedule = 50.0

    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """The squared discrepancy of the two sets of channels."""
        return selectivity_loss(student, teacher)
