"""The overhaul of feature distillation: pre-activations up to a margin, by a partial distance.

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

RARE = 0.001  # below this chance of a negative value the margin is three standard deviations


def margins(mean: Tensor, scale: Tensor) -> Tensor:
    """E[x | x < 0] of normal distributions, [K], from their means and standard deviations.

    -3 standard deviations where x < 0 has a chance of at most 0.001, as in the authors' code.
    """
    mean, deviation = mean.double(), scale.double().abs().clamp_min(1e-12)
    ratio = mean / deviation
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    chance = torch.special.ndtr(-ratio)
    expected = mean - deviation * density / chance.clamp_min(RARE)
    return torch.where(chance > RARE, expected, -3 * deviation)


def partial_loss(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Squared distances to max(teacher, margin) of [B, K, H, W], where they are to be closed.

    A student below a target that is not positive is left alone: both are silent after the ReLU.
    `margin` is [K]. Summed over one sample, averaged over B.
    """
    target = torch.maximum(teacher, margin[:, None, None])
    counts = (student > target) | (target > 0)
    # A product is read and written in the maps' own order; filling by a mask takes twice as long.
    return ((student - target) * counts.to(target.dtype)).square().sum() / len(student)


class Connector(Calibrated):
    """Brings a student's map to the teacher's channels; keeps the teacher's margins."""

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

    s and t are pre-activations; d sums (s - t)**2 over one sample wherever t > 0 or s > t, and is
    averaged over samples; the margin m of a channel is its expected value where it is negative,
    E[x | x < 0] of the normal distribution that the teacher's batch norm makes, in closed form.
    The connector is a 1 x 1 convolution and a batch norm. Heo et al. 2019, arXiv 1904.01866.
    Weight 1e-3 is mdistiller's for CIFAR; use 1e-4 for ImageNet. That maps of unequal sizes are
    averaged down to the smaller one is a decision of ours, and so are stages paired from the first
    on where one network has more, and the convolution's initial weights, which are PyTorch's.
    """

    title: ClassVar[str] = "Heo et al. 2019, arXiv 1904.01866"
    cost: ClassVar[str] = "B K K H W per stage"
    before_relu: ClassVar[bool] = True
    doubling: ClassVar[bool] = True

    name: Literal["ofd"] = "ofd"
    weight: Schedule = 1e-3

    def needs(self) -> Signal:
        """Stage outputs before their ReLU, and the teacher's batch norms."""
        return super().needs() | Signal.LIVE

    def stage_helper(self, student: feature_maps.Shape, teacher: feature_maps.Shape) -> Connector:
        """The connector from the student's channels to the teacher's."""
        return Connector(student[0], teacher[0])

    def stage_loss(self, student: Tensor, teacher: Tensor, helper: nn.Module | None) -> Tensor:
        """The partial distance of the connected map to the teacher's."""
        assert isinstance(helper, Connector)
        student, teacher = feature_maps.met(student, teacher)
        return partial_loss(helper(student), teacher, helper.margin)

    def needs_calibration(self, helpers: nn.ModuleDict) -> bool:
        """True until the margins are taken from the teacher."""
        return not all(bool(connector.known) for connector in helpers.values())

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Set the margins from the teacher's batch norms; no sample matters."""
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
