"""MarginDistillation: a margin loss whose margin follows from the teacher, face by face.

Shapes: B batch, C classes, D width of both embeddings.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods import margins
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at


class MarginDistillation(Method):
    """weight * ArcFace's loss of the student, with a margin m for each sample from its teacher.

    m = low + (high - low) / d * cos(t, w), where t is the teacher's embedding, w the direction of
    the sample's class in the student's own classifier, without a gradient, and d the largest such
    cosine of a batch: a face that the teacher finds typical gets the larger margin. From the code
    of MarginDistillation (Svitov and Alyamkin 2020, arXiv 2003.02586). Ours: each worker has a d of
    its own, a cosine below -d counts as that, and where none is above 0 all margins are `low`. The
    loss replaces that of the labels, and both embeddings have one width.
    """

    title: ClassVar[str] = "Svitov and Alyamkin 2020, arXiv 2003.02586"
    cost: ClassVar[str] = "B C D"
    label_weight: ClassVar[Schedule] = 0.0

    name: Literal["margin_distillation"] = "margin_distillation"
    weight: Schedule = 1.0
    """Factor of the margin loss: a number, [[first epoch, value], ...], or a ramp."""
    scale: float = Field(default=64.0, gt=0, le=Limits.WEIGHT)
    """Factor of the cosines."""
    low: float = Field(default=0.2, ge=0, le=Limits.WEIGHT)
    """Margin of a face at a right angle to its class, in radians."""
    high: float = Field(default=0.5, ge=0, le=math.pi)
    """Margin of the face of a batch that is nearest to its class, in radians."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError(
                f"low: expected {self.high:g} at most, which is high, got {self.low:g}"
            )
        return self

    def needs(self) -> Signal:
        """The teacher's embeddings."""
        return Signal.EMBEDDING

    def student_needs(self) -> Signal:
        """The embeddings, and the classifier."""
        return Signal.EMBEDDING | Signal.CLASSIFIER

    def reads_labels(self) -> bool:
        """True."""
        return True

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """None. Raises `ConfigError` where the widths differ."""
        if student.embedding != teacher.embedding:
            raise ConfigError(
                f"method {self.name!r} compares the teacher's embeddings, of {teacher.embedding} "
                f"numbers, with the student's classes, of {student.embedding}; choose a student "
                "with embeddings as wide as the teacher's, or ada_distill"
            )
        return nn.ModuleDict()

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The margin loss, at the embedding."""
        labels = batch.labels
        with full_precision(student.embedding):
            unit = F.normalize(precise(student.embedding), dim=1)
            directions = F.normalize(_rows(student.classifier).to(unit), dim=1)
            margin = self.margins_of(precise(teacher.embedding), directions.detach()[labels])
            loss = margins.margin_loss(unit @ directions.T, labels, margin, self.scale)
            return {"embedding": value_at(self.weight, batch.epoch) * loss}

    def margins_of(self, teacher: Tensor, directions: Tensor) -> Tensor:
        """The margins [B] of a teacher's embeddings [B, D] by their classes' directions [B, D]."""
        near = F.cosine_similarity(teacher, directions, dim=1)
        farthest = near.amax() if len(near) else near.new_ones(())
        share = torch.where(farthest > 0, near / farthest.clamp_min(1e-12), 0.0).clamp_min(-1)
        return self.low + (self.high - self.low) * share


def _rows(classifier: nn.Module) -> Tensor:
    """The direction [C, D] of each class in a last layer. Raises `ConfigError` without any."""
    weight = getattr(classifier, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2:
        return weight
    raise ConfigError(
        "method 'margin_distillation' reads the direction of each class in the student's last "
        f"layer, which is {type(classifier).__name__} and no linear map; choose another student"
    )
