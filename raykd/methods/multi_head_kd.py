"""Multi-head distillation: classifiers on the stages of both networks, compared pair by pair.

Shapes: B batch, C classes, K channels, H, W pixels.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.base import (
    Coverage,
    Method,
    Prelude,
    Schedule,
    Stages,
    Trains,
    canonical,
    full_precision,
    precise,
    soft_cross_entropy,
    value_at,
)
from raykd.methods.derived import Derived
from raykd.methods.feature_maps import shared_stages
from raykd.methods.stage_heads import (
    HEAD_LOGITS,
    TEACHER_HEADS,
    Head,
    HeadLogits,
    head_logits,
    head_of,
    head_stages,
)

PAPER = "Wang et al. 2020, arXiv 2012.02911"


class TeacherHeads(Method):
    """Sum over heads of the cross entropy with the labels: the prelude of `MultiHeadKD`.

    The heads are on the teacher's stages before the last; the teacher is frozen, and its batch
    norms are in evaluation mode.
    """

    title: ClassVar[str] = PAPER
    cost: ClassVar[str] = "2304 B H W (K + 256) per stage"
    label_weight: ClassVar[Schedule] = 0.0
    trains: ClassVar[Trains] = "helpers"

    name: Literal["teacher_heads"] = "teacher_heads"
    head: Head = "conv"
    """Kind of the classifiers."""

    def needs(self) -> Signal:
        """Stage outputs."""
        return Signal.FEATURES

    def reads_labels(self) -> bool:
        """True."""
        return True

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The teacher's heads, for the classes of the data."""
        return HeadLogits(head=self.head).modules(teacher, student.classes)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The cross entropy of each head, at its stage."""
        with full_precision(teacher.any_tensor):
            logits = head_logits(helpers[TEACHER_HEADS], teacher.features)
            return {stage: F.cross_entropy(z, batch.targets) for stage, z in logits.items()}


class MultiHeadKD(Method):
    """weight * KD(z) + head_weight * sum over heads k of [CE(h_s,k) + KD(h_t,k -> h_s,k)].

    Every stage but the last has a head in both networks, a classifier of its map; KD is
    temperature**2 * KL(teacher || student), CE the cross entropy with the labels, z the networks'
    own logits. A prelude trains the teacher's heads, whose weights are then frozen; the student's
    are trained with it, and are not exported. The stages are paired by name, as by `at`.

    Of the paper (arXiv 2012.02911) the abstract alone was available. The heads are those of the
    code of a near relative (arXiv 2103.00497), which describes itself as an implementation of it.
    There the teacher's heads are trained along with the student, which pulls them towards it. Ours:
    the prelude of 30 epochs at the learning rate 0.01, head `linear`, temperature 4 and the weights
    1 and 0.5.

    What the teacher's heads say is a derived column, C numbers a head and view, which a cache holds
    as it does logits; with `run.source: live` teacher and heads run in each step. The heads
    are those of the teacher's last epoch, also along a route through its earlier ones. A head
    `conv` on a large map costs more than a small network does: see `linear`.
    """

    title: ClassVar[str] = PAPER
    cost: ClassVar[str] = "2304 B H W (K + 256) per stage"
    joint: ClassVar[bool] = True  # its losses read the labels of the rows, which are those of all

    name: Annotated[Literal["multi_head_kd", "mhkd"], canonical("multi_head_kd")] = "multi_head_kd"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature of both networks' probabilities."""
    weight: Schedule = 1.0
    """Factor of the divergence at the networks' own logits."""
    head_weight: Schedule = 0.5
    """Factor of the sum over heads."""
    head: Head = "conv"
    """Heads of both networks: two convolutions and two linear layers, or one linear layer."""
    head_epochs: int = Field(default=30, gt=0, le=Limits.EPOCHS)
    """Length of the prelude, which trains the teacher's heads, in epochs."""
    head_lr: float = Field(default=0.01, gt=0, le=Limits.RATE)
    """Constant learning rate of the prelude."""

    def needs(self) -> Signal:
        """Logits, and those of the heads."""
        return Signal.LOGITS | Signal.DERIVED

    def student_needs(self) -> Signal:
        """Logits and stage outputs."""
        return Signal.LOGITS | Signal.FEATURES

    def derived(self) -> tuple[Derived, ...]:
        """The logits of the teacher's heads."""
        return (HeadLogits(head=self.head),)

    def accepts(self, coverage: Coverage) -> bool:
        """True for any coverage that suits the temperature, as of KD."""
        return coverage.suits(self.temperature)

    def prelude(self) -> Prelude:
        """The training of the teacher's heads."""
        return Prelude(TeacherHeads(head=self.head), self.head_epochs, self.head_lr)

    def reads_labels(self) -> bool:
        """True."""
        return True

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """The stages with a head, and the logits."""
        heads = [s for s in head_stages(student) if s in shared_stages(student, teacher)]
        return {spot: spot for spot in (*heads, "logits")}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The student's heads, by stage. Raises `ConfigError` where no stage has two heads."""
        mine, theirs = head_stages(student.features), head_stages(teacher.features)
        paired = [stage for stage in mine if stage in theirs]
        if not paired:
            raise ConfigError(
                f"method {self.name!r} compares heads on the stages before a network's last, and "
                f"the student ({', '.join(student.features) or 'no stages'}) and the teacher "
                f"({', '.join(teacher.features) or 'no stages'}) have none in common. Choose "
                "networks with two stages or more, or a method that reads logits or embeddings."
            )
        classes = student.classes
        heads = {s: head_of(self.head, student.features[s][0], classes) for s in paired}
        return nn.ModuleDict(heads)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The weighted loss of each head at its stage, and that of the logits."""
        weight, head_weight = (value_at(w, batch.epoch) for w in (self.weight, self.head_weight))
        losses: dict[str, Tensor] = {}
        with full_precision(student.logits):
            for stage, logits in head_logits(helpers, student.features).items():
                theirs = precise(teacher.derived[f"{stage}{HEAD_LOGITS}"])
                distilled = soft_cross_entropy(logits, theirs, self.temperature)
                losses[stage] = head_weight * (F.cross_entropy(logits, batch.targets) + distilled)
            answers = precise(student.logits), precise(teacher.logits)
            losses["logits"] = weight * soft_cross_entropy(*answers, self.temperature)
        return losses
