"""Factor transfer: matching factors, which are learned summaries of feature maps.

Shapes: B batch, K channels, H, W pixels.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods import feature_maps
from raykd.methods.base import (
    Method,
    Prelude,
    Schedule,
    SpotMethod,
    Stages,
    Trains,
    full_precision,
    precise,
)
from raykd.methods.columns import FromColumns, StageMaps
from raykd.methods.derived import Derived

SLOPE = 0.1  # negative slope of the leaky ReLUs, as in the CRD benchmark


def factor_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of the attention maps of two factors [B, K, H, W].

    Averaged over B and pixels; the larger factor is average-pooled first.
    """
    student, teacher = feature_maps.match_sizes(student, teacher)
    return (feature_maps.attention_map(student) - feature_maps.attention_map(teacher)).abs().mean()


def encoder(width_in: int, width: int, *, norm: bool) -> nn.Sequential:
    """Three 3 x 3 convolutions from a map of `width_in` channels to a factor of `width`."""
    layers: list[nn.Module] = []
    for before, after in pairwise((width_in, width_in, width, width)):
        layers.append(nn.Conv2d(before, after, 3, 1, 1))
        layers += [nn.BatchNorm2d(after)] if norm else []
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """Autoencoder from K channels to a factor of K // 2 channels and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = encoder(width, width // 2, norm=False)
        layers: list[nn.Module] = []
        for before, after in pairwise((width // 2, width // 2, width, width)):
            layers += [nn.ConvTranspose2d(before, after, 3, 1, 1), nn.LeakyReLU(SLOPE)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction of maps [B, K, H, W]."""
        return self.decoder(self.encoder(x))


class FTParaphraser(Method):
    """mean((decoder(encoder(t)) - t)**2) on the teacher's last stage: the prelude of `FT`.

    It reads only the teacher's outputs.
    """

    title: ClassVar[str] = "Kim et al. 2018, arXiv 1802.04977"
    cost: ClassVar[str] = "36 B K**2 H W"
    label_weight: ClassVar[Schedule] = 0.0
    trains: ClassVar[Trains] = "helpers"

    name: Literal["ft_paraphraser"] = "ft_paraphraser"

    def needs(self) -> Signal:
        """Stage outputs."""
        return Signal.FEATURES

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The paraphraser."""
        width, _, _ = feature_maps.last_shape(teacher, self.name)
        return nn.ModuleDict({"paraphraser": Paraphraser(width)})

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Mean squared error of the reconstruction, at the teacher's last stage."""
        stage = feature_maps.last_stage(teacher.features)
        with full_precision(teacher.any_tensor):
            maps = precise(teacher.features[stage])
            return {stage: F.mse_loss(helpers["paraphraser"](maps), maps)}


class FT(FromColumns, SpotMethod):
    """weight * mean(|a(translator(s)) - a(paraphraser(t))|) on the last stages.

    a(F) is the attention map: the mean square over channels, with L2 norm 1 over the pixels. The
    paraphraser's encoder summarises the teacher's map in half as many channels; the prelude
    trains it to reconstruct that map, then it is frozen. The translator is the same encoder with
    batch norms, on the student's map, trained with the student. Kim et al. 2018, arXiv 1802.04977.
    Weight 200, 30 epochs and the learning rate 0.01 are the CRD benchmark's; it uses that rate for
    resnet and wide-resnet students, and the student's rate for others: set `paraphraser_lr` there.
    The attention of one pixel is constant: the loss of such maps is 0.

    With `source: cache` the teacher's maps are read from a cache and go through the paraphraser in
    each step; the prelude runs the teacher.
    """

    title: ClassVar[str] = "Kim et al. 2018, arXiv 1802.04977"
    cost: ClassVar[str] = "B K K H W"

    name: Literal["ft"] = "ft"
    weight: Schedule = 200.0
    paraphraser_epochs: int = Field(default=30, gt=0, le=Limits.EPOCHS)
    """Length of the prelude, which trains the paraphraser, in epochs."""
    paraphraser_lr: float = Field(default=0.01, gt=0, le=Limits.RATE)
    """Constant learning rate of the prelude."""

    def columns(self) -> tuple[Derived, ...]:
        """The last stage's maps."""
        return (StageMaps(deepest=1),)

    def prelude(self) -> Prelude:
        """The paraphraser's training."""
        return Prelude(FTParaphraser(), self.paraphraser_epochs, self.paraphraser_lr)

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """The last stage."""
        return {feature_maps.last_stage(student): feature_maps.last_stage(teacher)}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The frozen paraphraser and the translator."""
        width_s, _, _ = feature_maps.last_shape(student, self.name)
        width_t, _, _ = feature_maps.last_shape(teacher, self.name)
        return nn.ModuleDict(
            {
                "paraphraser": Paraphraser(width_t).requires_grad_(False),
                "translator": encoder(width_s, width_t // 2, norm=True),
            }
        )

    def spot_loss(self, student: Tensor, teacher: Tensor, helpers: nn.ModuleDict) -> Tensor:
        """Mean absolute difference of the factors' attention maps."""
        paraphraser = helpers["paraphraser"]
        assert isinstance(paraphraser, Paraphraser)
        return factor_loss(helpers["translator"](student), paraphraser.encoder(teacher))
