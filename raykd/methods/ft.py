"""Factor transfer: the student learns a summary of the teacher's maps, not the maps.

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
from raykd.methods.base import Method, Prelude, Schedule, full_precision, precise, value_at

SLOPE = 0.1  # slope of the leaky ReLUs; the CRD benchmark's


def factor_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean absolute difference of two factors' attention maps, from [B, K, H, W].

    Averaged over B and pixels; the larger factor is averaged down first.
    """
    student, teacher = feature_maps.met(student, teacher)
    return (feature_maps.energy(student) - feature_maps.energy(teacher)).abs().mean()


def encoder(width_in: int, width: int, *, norm: bool) -> nn.Sequential:
    """Three 3 x 3 convolutions from a map of `width_in` channels to a factor of `width`."""
    layers: list[nn.Module] = []
    for before, after in pairwise((width_in, width_in, width, width)):
        layers.append(nn.Conv2d(before, after, 3, 1, 1))
        layers += [nn.BatchNorm2d(after)] if norm else []
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """An encoder from K channels to a factor of K // 2, and the decoder that mirrors it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = encoder(width, width // 2, norm=False)
        layers: list[nn.Module] = []
        for before, after in pairwise((width // 2, width // 2, width, width)):
            layers += [nn.ConvTranspose2d(before, after, 3, 1, 1), nn.LeakyReLU(SLOPE)]
        self.decoder = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, K, H, W], after passing through a factor."""
        return self.decoder(self.encoder(x))


class FTParaphraser(Method):
    """mean((decoder(encoder(t)) - t)**2) on the teacher's last stage: the prelude of `FT`.

    Reads the teacher alone; the student's outputs may be anything.
    """

    title: ClassVar[str] = "Kim et al. 2018, arXiv 1802.04977"
    cost: ClassVar[str] = "36 B K**2 H W"
    label_weight: ClassVar[Schedule] = 0.0
    trains: ClassVar[Literal["student", "backbone", "helpers"]] = "helpers"

    name: Literal["ft_paraphraser"] = "ft_paraphraser"

    def needs(self) -> Signal:
        """Stage outputs."""
        return Signal.FEATURES

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The paraphraser."""
        width, _, _ = feature_maps.deepest(teacher, self.name)
        return nn.ModuleDict({"paraphraser": Paraphraser(width)})

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The reconstruction's mean squared error, at the teacher's last stage."""
        stage = feature_maps.last(teacher.features)
        with full_precision(teacher.logits):
            theirs = precise(teacher.features[stage])
            return {stage: F.mse_loss(helpers["paraphraser"](theirs), theirs)}


class FT(Method):
    """weight * mean(|a(translator(s)) - a(paraphraser(t))|) on the last stages.

    a(F) is the mean square over channels, scaled to length 1 over the pixels. The paraphraser's
    encoder summarises the teacher's map in half as many channels; it is trained before, to
    reconstruct that map, and then fixed. The translator is the same encoder with batch norms, on
    the student's map, trained with the student. Kim et al. 2018, arXiv 1802.04977. Weight 200, 30
    epochs and the rate 0.01 are the CRD benchmark's; it takes that rate for resnet and
    wide-resnet students, and the student's own for others: set `paraphraser_lr` there. Maps of
    one pixel have no attention to compare: their loss is 0.
    """

    title: ClassVar[str] = "Kim et al. 2018, arXiv 1802.04977"
    cost: ClassVar[str] = "B K K H W"

    name: Literal["ft"] = "ft"
    weight: Schedule = 200.0
    paraphraser_epochs: int = Field(default=30, gt=0, le=Limits.EPOCHS)  # the prelude's length
    paraphraser_lr: float = Field(default=0.01, gt=0, le=Limits.RATE)  # the prelude's, constant

    def needs(self) -> Signal:
        """Stage outputs."""
        return Signal.FEATURES

    def prelude(self) -> Prelude:
        """The paraphraser's training."""
        return Prelude(FTParaphraser(), self.paraphraser_epochs, self.paraphraser_lr)

    def spots(
        self, student: Mapping[str, object], teacher: Mapping[str, object]
    ) -> Mapping[str, str]:
        """The last stage."""
        return {feature_maps.last(student): feature_maps.last(teacher)}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The fixed paraphraser and the translator."""
        mine, theirs = (
            feature_maps.deepest(student, self.name),
            feature_maps.deepest(teacher, self.name),
        )
        return nn.ModuleDict(
            {
                "paraphraser": Paraphraser(theirs[0]).requires_grad_(False),
                "translator": encoder(mine[0], theirs[0] // 2, norm=True),
            }
        )

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The factors' difference, at the student's last stage."""
        stage, paraphraser = feature_maps.last(student.features), helpers["paraphraser"]
        assert isinstance(paraphraser, Paraphraser)
        with full_precision(student.logits):
            mine = helpers["translator"](precise(student.features[stage]))
            theirs = precise(teacher.features[feature_maps.last(teacher.features)])
            loss = factor_loss(mine, paraphraser.encoder(theirs))
            return {stage: value_at(self.weight, batch.epoch) * loss}
