"""SimKD: the student imitates the teacher's last map and answers with its classifier.

Shapes: B batch, C classes, D embedding width, K channels, H, W pixels.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods import feature_maps
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at
from raykd.methods.helper_kinds import Calibrated


class Projector(nn.Module):
    """Brings the student's last map to the teacher's channels; a larger one is averaged down."""

    def __init__(
        self, shape_in: feature_maps.Shape, shape_out: feature_maps.Shape, middle: int
    ) -> None:
        super().__init__()
        width_in, width = shape_in[0], shape_out[0]
        self.size = feature_maps.smaller(shape_in, shape_out)
        self.layers = nn.Sequential(
            nn.Conv2d(width_in, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip

    def forward(self, student: Tensor) -> Tensor:
        """[B, K_student, H, W] -> [B, K_teacher, H, W], H and W the smaller of both networks'."""
        if student.shape[2:] != self.size:
            student = F.adaptive_avg_pool2d(student, self.size)
        return self.layers(student)


class Classifier(nn.Linear, Calibrated):
    """The teacher's classifier, fixed, and whether the teacher has set it yet."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)
        self.requires_grad_(False)
        self.register_buffer("known", torch.tensor(False))


class SimKD(Method):
    """weight * mean((projector(s) - t)**2) on the last maps, and nothing for the labels.

    The student answers with the teacher's classifier, fixed, on its own projected and averaged
    map: projector and classifier stay with it. The student's own classifier is not trained. With
    a label weight of the run's own the projector works twice a step, for scores and losses.
    Chen et al. 2022, arXiv 2203.14001. The weights and the factor 2, by which the projector's
    middle is narrower than the teacher's map, are the authors'. The teacher must pool its last
    map by averaging alone.
    """

    title: ClassVar[str] = "Chen et al. 2022, arXiv 2203.14001"
    cost: ClassVar[str] = "B K K H W"
    label_weight: ClassVar[Schedule] = 0.0
    trains: ClassVar[Literal["student", "backbone", "helpers"]] = "backbone"
    released: ClassVar[tuple[str, ...]] = ("projector", "classifier")

    name: Literal["simkd"] = "simkd"
    weight: Schedule = 1.0
    # The teacher's channels over the projector's in its middle.
    factor: int = Field(default=2, ge=1, le=Limits.WIDTH)

    def needs(self) -> Signal:
        """Stage outputs, and the teacher's classifier."""
        return Signal.FEATURES | Signal.LIVE

    def spots(
        self, student: Mapping[str, object], teacher: Mapping[str, object]
    ) -> Mapping[str, str]:
        """The last stage."""
        return {feature_maps.last(student): feature_maps.last(teacher)}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The projector, and the place for the teacher's classifier."""
        mine, theirs = (
            feature_maps.deepest(student, self.name),
            feature_maps.deepest(teacher, self.name),
        )
        feature_maps.check_sequential(student, self.name, "trains the student's stages alone")
        if theirs[0] != teacher.embedding:
            raise ConfigError(
                f"method 'simkd' averages the teacher's last map ({theirs[0]} channels), and this "
                f"teacher makes an embedding of {teacher.embedding} of it. Choose a teacher that "
                "only averages, such as a resnet."
            )
        return nn.ModuleDict(
            {
                "projector": Projector(mine, theirs, max(1, theirs[0] // self.factor)),
                "classifier": Classifier(teacher.embedding, teacher.classes),
            }
        )

    def needs_calibration(self, helpers: nn.ModuleDict) -> bool:
        """True until the classifier is copied from the teacher."""
        return not bool(_classifier(helpers).known)

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Copy the teacher's classifier; no sample matters."""
        network, ours = next(iter(teacher)).network, _classifier(helpers)
        theirs, pool = network.classifier, [*network.pool.children()]
        averages = [type(part) for part in pool] == [nn.AdaptiveAvgPool2d, nn.Flatten]
        if not averages or not isinstance(theirs, nn.Linear):
            raise ConfigError(
                "method 'simkd' needs a teacher that averages its last map and has one linear "
                f"classifier; this one pools by {_named(pool)} and classifies by "
                f"{_named([theirs])}. Choose another teacher, such as a resnet."
            )
        with torch.no_grad():
            ours.weight.copy_(theirs.weight)
            ours.bias.copy_(torch.zeros_like(ours.bias) if theirs.bias is None else theirs.bias)
            ours.known.fill_(True)

    def scores(self, student: Outputs, teacher: Outputs | None, helpers: nn.ModuleDict) -> Tensor:
        """The answer [B, C] of the teacher's classifier to the student's projected map."""
        with full_precision(student.logits):
            projected = helpers["projector"](precise(_last(student)))
            return helpers["classifier"](projected.mean((2, 3)))

    def rescaling(self, helpers: nn.ModuleDict) -> Mapping[str, str | float] | None:
        """None: the student's own logits have no part in its answer."""
        return None

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The mean squared error of the projected map, at the student's last stage."""
        with full_precision(student.logits):
            projected = helpers["projector"](precise(_last(student)))
            loss = F.mse_loss(*feature_maps.met(projected, precise(_last(teacher))))
            return {feature_maps.last(student.features): value_at(self.weight, batch.epoch) * loss}


def _classifier(helpers: nn.ModuleDict) -> Classifier:
    """The classifier among the helpers."""
    classifier = helpers["classifier"]
    assert isinstance(classifier, Classifier)
    return classifier


def _last(outputs: Outputs) -> Tensor:
    """The output of the last stage."""
    return outputs.features[feature_maps.last(outputs.features)]


def _named(modules: list[nn.Module]) -> str:
    """The kinds of some modules, in words."""
    return ", ".join(type(module).__name__ for module in modules) or "a module of its own"
