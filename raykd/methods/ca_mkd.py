"""Confidence-aware distillation from several teachers: those that are right count more.

Shapes: B batch, C classes, K channels, H, W pixels, M teachers.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.base import Schedule, Stages, full_precision, precise, value_at
from raykd.methods.feature_maps import Regressor, deepest, last_shape, pool_or_enlarge
from raykd.methods.panel_kd import PanelKD


class CAMKD(PanelKD):
    """weight * mean over samples of sum over teachers of w_m * T**2 KL(t_m || s).

    w_m = (1 - softmax over teachers of their cross entropy with the label) / (M - 1), which sum to
    1. Zhang et al. 2022, arXiv 2201.00007, equations 2 and 3; the authors' code (Rorozhl/CA-MKD)
    divides by M again: `normalise: false`.

    With a `feature_weight` there is its loss of features, too: mean over samples of sum over
    teachers of v_m * the mean squared difference of the last maps. The student's map is brought to
    the teacher's size, and goes through a 1x1 convolution with batch norm and ReLU; v_m is w_m with
    the cross entropy of the teacher's classifier on the means of that map over places. The paper's
    weight is 50 from the second epoch on, [[0, 0.0], [1, 50.0]], in its code. No gradient flows
    through v_m, and without a weight nothing reads the maps: both are ours.
    """

    title: ClassVar[str] = "Zhang et al. 2022, arXiv 2201.00007"
    joint: ClassVar[bool] = True  # all spots read the labels

    name: Literal["ca_mkd"] = "ca_mkd"
    normalise: bool = True
    """Weights that sum to 1, as in the paper; false: to 1 / M, as in its code."""
    feature_weight: Schedule = 0.0
    """Factor of the loss of last maps: a number, [[first epoch, value], ...], or a ramp."""

    def needs(self) -> Signal:
        """Logits; for the loss of features the last map and the classifier, too."""
        features = Signal.MAP | Signal.CLASSIFIER if self.feature_weight else Signal(0)
        return Signal.LOGITS | features

    def student_needs(self) -> Signal:
        """Logits, and the last map for the loss of features."""
        return self.needs() & ~Signal.CLASSIFIER

    def reads_labels(self) -> bool:
        """True: the weights follow from them."""
        return True

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """The logits, and for the loss of features the last stages."""
        maps = {deepest(student): deepest(teacher)} if self.feature_weight else {}
        return maps | {"logits": "logits"}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The convolution of each teacher for the loss of features, by its number.

        Raises `ConfigError` where a teacher's classifier does not read its last map's channels.
        """
        helpers = nn.ModuleDict()
        for number, member in enumerate(teacher.panel or (teacher,) if self.feature_weight else ()):
            shape = last_shape(member, self.name)
            if member.embedding != shape[0]:
                raise ConfigError(
                    f"method.feature_weight: the classifier of teacher {number} reads "
                    f"{member.embedding} numbers, and its last map has {shape[0]} channels, so it "
                    "cannot judge a map; choose a network whose embedding is the mean of its last "
                    "map, such as a resnet, or leave feature_weight out"
                )
            width = last_shape(student, self.name)[0]
            helpers[str(number)] = Regressor((width, *shape[1:]), shape)
        return helpers

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The weighted losses, at the logits and at the last stage."""
        losses = dict(super().losses(student, teacher, batch, helpers))
        if self.feature_weight:
            with full_precision(student.map):
                loss = self._feature_loss(student, teacher, batch, helpers)
            losses[student.map_stage] = value_at(self.feature_weight, batch.epoch) * loss
        return losses

    def teacher_weights(
        self, student: Tensor, teachers: Tensor, batch: Batch, helpers: nn.ModuleDict
    ) -> Tensor:
        """Weights [M, B]."""
        return self._weights([*teachers], batch)

    def _weights(self, logits: list[Tensor], batch: Batch) -> Tensor:
        """Weights [M, B] from what M classifiers [B, C] say of the samples; of one: 1."""
        if len(logits) == 1:
            return logits[0].new_ones(1, 1)
        wrong = [F.cross_entropy(one, batch.targets, reduction="none") for one in logits]
        weights = (1 - torch.stack(wrong).softmax(0)) / (len(logits) - 1)
        return weights if self.normalise else weights / len(logits)

    def _feature_loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Tensor:
        """The loss of the last maps, without its weight."""
        mine = precise(student.map)
        apart: list[Tensor] = []
        said: list[Tensor] = []
        for member, helper in zip(teacher.panel or (teacher,), helpers.values(), strict=True):
            target = precise(member.map)
            mapped = helper(pool_or_enlarge(mine, target.shape[2:]))
            apart.append((mapped - target).square().flatten(1).mean(1))
            said.append(precise(member.classifier(mapped.detach().mean((2, 3)))))
        weights = self._weights(said, batch)
        return (weights * torch.stack(apart)).sum() / max(1, len(mine))
