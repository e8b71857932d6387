"""Overhaul of feature distillation: partial L2 distance of pre-activations, with margins.

Shapes: B batch, K channels, H, W pixels.
"""

import math
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Signal
from raykd.methods import feature_maps
from raykd.methods.base import Schedule
from raykd.methods.helper_kinds import Calibrated

RARE = 0.001  # probability of x < 0, up to which the margin is -3 standard deviations


def margins(mean: Tensor, scale: Tensor) -> Tensor:
    """E[x | x < 0] of normal distributions [K] with these means and standard deviations.

    -3 standard deviations where P(x < 0) is at most 0.001, as in the authors' code.
    """
    mean, deviation = mean.double(), scale.double().abs().clamp_min(1e-12)
    ratio = mean / deviation
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    probability = torch.special.ndtr(-ratio)
    expected = mean - deviation * density / probability.clamp_min(RARE)
    return torch.where(probability > RARE, expected, -3 * deviation)


def partial_loss(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Partial L2 distance of the student to max(teacher, margin), from [B, K, H, W].

    Elements with student <= target <= 0 do not count: the ReLU maps both to 0. `margin` is [K].
    Summed over a sample, averaged over B.
    """
    target = torch.maximum(teacher, margin[:, None, None])
    mask = (student > target) | (target > 0)
    # The product keeps the memory format of the maps; masked_fill takes twice as long.
    return ((student - target) * mask.to(target.dtype)).square().sum() / len(student)


class Connector(Calibrated):
    """1 x 1 convolution and batch norm to the teacher's channels, and the teacher's margins."""

    margin: Tensor

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.fit = nn.Sequential(nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width))
        self.register_buffer("margin", torch.zeros(width))
        self.register_buffer("known", torch.tensor(False))

    def forward(self, student: Tensor) -> Tensor:
        """[B, K_student, H, W] -> [B, K_teacher, H, W]."""
        return self.fit(student)


class OFD(feature_maps.StageMethod):
    """weight * sum over stages k = 1..K of 2**(k - K) * d(connector(s), max(t, m)).

    s and t are pre-activations; d sums (s - t)**2 over a sample wherever t > 0 or s > t, and is
    averaged over samples; the margin m of a channel is E[x | x < 0], in closed form, of the normal
    distribution that the teacher's batch norm outputs. The connector is a 1 x 1 convolution and a
    batch norm. Heo et al. 2019, arXiv 1904.01866. Weight 1e-3 is mdistiller's for CIFAR; use 1e-4
    for ImageNet. Our choices: maps of unequal sizes are average-pooled to the smaller one, stages
    are paired from the first on where one network has more, and the convolution has PyTorch's
    initial weights.
    """

    title: ClassVar[str] = "Heo et al. 2019, arXiv 1904.01866"
    cost: ClassVar[str] = "B K K H W per stage"
    before_relu: ClassVar[bool] = True
    doubling: ClassVar[bool] = True

    name: Literal["ofd"] = "ofd"
    weight: Schedule = 1e-3

    def needs(self) -> Signal:
        """Pre-activations of the stages, and the teacher's batch norms."""
        return super().needs() | Signal.LIVE

    def stage_helper(self, student: feature_maps.Shape, teacher: feature_maps.Shape) -> Connector:
        """Connector from the student's channels to the teacher's."""
        return Connector(student[0], teacher[0])

    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """Partial distance of the connected map to the teacher's."""
        assert isinstance(helper, Connector)
        student, teacher = feature_maps.match_sizes(student, teacher)
        return partial_loss(helper(student), teacher, helper.margin)

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Set the margins from the teacher's batch norms; the batches do not matter."""
        norms = next(iter(teacher)).network.norms
        for stage, connector in helpers.items():
            assert isinstance(connector, Connector)
            if stage not in norms:
                raise ConfigError(
                    "method 'ofd' takes its margins from the teacher's batch norms, and none is "
                    f"known for its {stage!r}. Choose another teacher, such as resnet32x4, or "
                    "another method."
                )
            with torch.no_grad():
                connector.margin.copy_(margins(norms[stage].bias, norms[stage].weight))
                connector.known.fill_(True)
