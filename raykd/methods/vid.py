"""Variational information distillation: likelihood of the teacher's maps given the student's.

Shapes: B batch, K channels, H, W pixels.
"""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.methods import feature_maps
from raykd.methods.base import Schedule
from raykd.methods.columns import FromColumns, StageMaps
from raykd.methods.derived import Derived

VARIANCE = 5.0  # initial variance of each channel in the CRD benchmark
EPSILON = 1e-5  # smallest variance in the CRD benchmark


class Gaussian(nn.Module):
    """Normal distribution of the teacher's map given the student's, with a variance per channel."""

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
        """-log p(teacher | student) - log(2 pi) / 2, averaged over all elements of [B, K, H, W].

        Negative once variances are small. The larger map is average-pooled first.
        """
        student, teacher = feature_maps.match_sizes(student, teacher)
        variance = (F.softplus(self.rho) + EPSILON)[:, None, None]
        square = (teacher - self.mean(student)).square()
        return 0.5 * (square / variance + variance.log()).mean()


class VID(FromColumns, feature_maps.StageMethod):
    """weight * sum over stages of mean((t - mu(s))**2 / v + log v) / 2.

    mu (three 1 x 1 convolutions) and the variances v = softplus(rho) + 1e-5, one per channel
    of the teacher, are trained with the student. Ahn et al. 2019, arXiv 1904.05835. Weight 1
    and the initial v = 5 are the CRD benchmark's.
    """

    title: ClassVar[str] = "Ahn et al. 2019, arXiv 1904.05835"
    cost: ClassVar[str] = "B K K H W per stage"

    name: Literal["vid"] = "vid"
    weight: Schedule = 1.0

    def columns(self) -> tuple[Derived, ...]:
        """The maps of all stages."""
        return (StageMaps(),)

    def stage_helper(self, student: feature_maps.Shape, teacher: feature_maps.Shape) -> Gaussian:
        """Distribution of the teacher's map given the student's."""
        return Gaussian(student[0], teacher[0])

    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """Negative log likelihood."""
        assert isinstance(helper, Gaussian)
        return helper(student, teacher)
