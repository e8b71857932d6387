"""Variational information distillation: the teacher's maps are likely, given the student's.

Shapes: B batch, K channels, H, W pixels.
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.methods import feature_maps
from raykd.methods.base import Schedule

VARIANCE = 5.0  # each channel's at the start; the CRD benchmark's
EPSILON = 1e-5  # the least variance; the CRD benchmark's


class Gaussian(nn.Module):
    """A normal distribution of the teacher's map, given the student's, one variance a channel."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(width_in, width, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
        )
        self.rho = nn.Parameter(torch.full((width,), math.log(math.expm1(VARIANCE - EPSILON))))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """-log p(teacher | student) from [B, K, H, W], less log(2 pi) / 2, averaged over all.

        Below 0 once variances are small. The larger map is averaged down first.
        """
        student, teacher = feature_maps.met(student, teacher)
        variance = (F.softplus(self.rho) + EPSILON)[:, None, None]
        square = (teacher - self.mean(student)).square()
        return 0.5 * (square / variance + variance.log()).mean()


class VID(feature_maps.StageMethod):
    """weight * sum over stages of mean((t - mu(s))**2 / v + log v) / 2.

    mu (three 1 x 1 convolutions) and the variances v = softplus(rho) + 1e-5, one per channel
    of the teacher, are trained with the student. Ahn et al. 2019, arXiv 1904.05835. Weight 1
    and v = 5 at the start are the CRD benchmark's.
    """

    title: ClassVar[str] = "Ahn et al. 2019, arXiv 1904.05835"
    cost: ClassVar[str] = "B K K H W per stage"

    name: Literal["vid"] = "vid"
    weight: Schedule = 1.0

    def stage_helper(self, student: feature_maps.Shape, teacher: feature_maps.Shape) -> Gaussian:
        """The distribution of the teacher's map, given the student's."""
        return Gaussian(student[0], teacher[0])

    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """The negative log likelihood."""
        assert isinstance(helper, Gaussian)
        return helper(student, teacher)
