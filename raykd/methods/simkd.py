"""SimKD: the student regresses the teacher's last map and uses the teacher's classifier.

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
from raykd.core.types import Outputs, Shapes, Signal
from raykd.methods import feature_maps
from raykd.methods.base import Schedule, SpotMethod, Stages, Trains, full_precision, precise
from raykd.methods.helper_kinds import Calibrated


class Projector(nn.Module):
    """Map from the student's last stage to the teacher's channels; a larger map is pooled first."""

    def __init__(
        self, shape_in: feature_maps.Shape, shape_out: feature_maps.Shape, middle: int
    ) -> None:
        super().__init__()
        width_in, width = shape_in[0], shape_out[0]
        self.size = feature_maps.smaller_size(shape_in, shape_out)
        self.layers = nn.Sequential(
            nn.Conv2d(width_in, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip

    def forward(self, student: Tensor) -> Tensor:
        """[B, K_student, H, W] -> [B, K_teacher, H, W], H and W the smaller of both networks'."""
        return self.layers(feature_maps.pool_to(student, self.size))


class Classifier(nn.Linear, Calibrated):
    """Frozen copy of the teacher's classifier, made at calibration."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(width, classes)
        self.requires_grad_(False)
        self.register_buffer("known", torch.tensor(False))


class SimKD(SpotMethod):
    """weight * mean((projector(s) - t)**2) on the last maps, with label weight 0.

    The student's scores are the teacher's frozen classifier on its own projected and averaged map:
    projector and classifier are released with it. The student's classifier is not trained. With a
    label weight above 0 the projector runs twice a step, for scores and losses. Chen et al. 2022,
    arXiv 2203.14001. The weights and the factor 2 are the authors'. The teacher must pool its last
    map by averaging alone.
    """

    title: ClassVar[str] = "Chen et al. 2022, arXiv 2203.14001"
    cost: ClassVar[str] = "B K K H W"
    label_weight: ClassVar[Schedule] = 0.0
    trains: ClassVar[Trains] = "backbone"
    released: ClassVar[tuple[str, ...]] = ("projector", "classifier")

    name: Literal["simkd"] = "simkd"
    weight: Schedule = 1.0
    factor: int = Field(default=2, ge=1, le=Limits.WIDTH)
    """Channels of the teacher's map over the hidden channels of the projector."""

    def needs(self) -> Signal:
        """Stage outputs, and the teacher's classifier."""
        return Signal.FEATURES | Signal.LIVE | Signal.CLASSIFIER

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """The last stage."""
        return {feature_maps.last_stage(student): feature_maps.last_stage(teacher)}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The projector, and a classifier that calibration fills in."""
        shape_s = feature_maps.last_shape(student, self.name)
        shape_t = feature_maps.last_shape(teacher, self.name)
        feature_maps.check_sequential(student, self.name, "trains the student's stages alone")
        if shape_t[0] != teacher.embedding:
            raise ConfigError(
                f"method 'simkd' averages the teacher's last map ({shape_t[0]} channels), and this "
                f"teacher makes an embedding of {teacher.embedding} of it. Choose a teacher that "
                "only averages, such as a resnet."
            )
        return nn.ModuleDict(
            {
                "projector": Projector(shape_s, shape_t, max(1, shape_t[0] // self.factor)),
                "classifier": Classifier(teacher.embedding, teacher.classes),
            }
        )

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Copy the teacher's classifier; the batches do not matter."""
        network, copy = next(iter(teacher)).network, _classifier(helpers)
        classifier, pool = network.classifier, [*network.pool.children()]
        averages = [type(part) for part in pool] == [nn.AdaptiveAvgPool2d, nn.Flatten]
        if not averages or not isinstance(classifier, nn.Linear):
            raise ConfigError(
                "method 'simkd' needs a teacher that averages its last map and has one linear "
                f"classifier; this one pools by {_kinds(pool)} and classifies by "
                f"{_kinds([*classifier.children()] or [classifier])}. Choose another teacher, such "
                "as a resnet."
            )
        with torch.no_grad():
            copy.weight.copy_(classifier.weight)
            copy.bias.zero_()
            if classifier.bias is not None:
                copy.bias.copy_(classifier.bias)
            copy.known.fill_(True)

    def scores(self, student: Outputs, teacher: Outputs | None, helpers: nn.ModuleDict) -> Tensor:
        """Logits [B, C] of the teacher's classifier for the student's projected map."""
        with full_precision(student.any_tensor):
            maps = student.features[feature_maps.last_stage(student.features)]
            projected = helpers["projector"](precise(maps))
            return helpers["classifier"](projected.mean((2, 3)))

    def rescaling(self, helpers: nn.ModuleDict) -> Mapping[str, str | float] | None:
        """None: the scores do not depend on the student's own logits."""
        return None

    def spot_loss(self, student: Tensor, teacher: Tensor, helpers: nn.ModuleDict) -> Tensor:
        """Mean squared error of the projected map."""
        return F.mse_loss(*feature_maps.match_sizes(helpers["projector"](student), teacher))


def _classifier(helpers: nn.ModuleDict) -> Classifier:
    """The classifier among the helpers."""
    classifier = helpers["classifier"]
    assert isinstance(classifier, Classifier)
    return classifier


def _kinds(modules: list[nn.Module]) -> str:
    """Class names of modules, for a message."""
    return ", ".join(type(module).__name__ for module in modules) or "a module of its own"
