"""One training step's worth of mathematics: student, helpers and method as one module.

Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs, Signal
from raykd.methods.base import Method, full_precision, match_classes
from raykd.models.staged import Staged, Through
from raykd.tasks import Task
from raykd.tasks.classification import CLASSIFICATION
from raykd.teachers.source import LiveTeacher, Source, by_look
from raykd.training import network_parts
from raykd.training.compiled import Mode, compiled_pass, refusal


class Learner(nn.Module):
    """Everything that is trained, in one module: one wrapper for many workers, one state.

    The networks run in bfloat16 where `autocast` is set; losses are computed in float32.
    Parameters that the method does not train are frozen, and so are those of the parts in `freeze`
    (see `Optim`), whose batch norms stay in evaluation mode. `teacher` is there where it is trained
    beside the student, and answers in every step.
    """

    def __init__(
        self,
        student: Staged,
        method: Method,
        helpers: nn.ModuleDict,
        teacher: LiveTeacher | None = None,
        *,
        autocast: bool = False,
        compiled: Mode = False,
        label_smoothing: float = 0.0,
        task: Task = CLASSIFICATION,
        freeze: tuple[str, ...] = (),
    ) -> None:
        """`compiled`: how the student's pass is compiled, where the method lets it be."""
        super().__init__()
        self.student = student
        self.helpers = helpers
        self.method = method
        self.teacher: Source | None = None
        if teacher is not None:
            self.teacher_network = teacher.network  # its weights are ours
            self.teacher = by_look(dict.fromkeys(method.looks().teacher, teacher))
        self.autocast = autocast
        self.label_smoothing = label_smoothing
        self.task = task
        self._through: Through | None = None
        if compiled and refusal(method) is None:
            self._through = compiled_pass(student, compiled)
        if method.trains != "student":
            student.requires_grad_(False)
        if method.trains == "backbone":
            for stage in student.stages.values():
                stage.requires_grad_(True)
        frozen = network_parts.frozen_modules(freeze, student, helpers) if freeze else []
        for module in frozen:
            for value in module.parameters(recurse=False):
                value.requires_grad_(False)
        self.frozen_norms = tuple(network_parts.norms_of(frozen))  # a tuple registers nothing

    def forward(
        self, batch: Batch, teacher: Outputs | None, label_weight: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The weighted scalar losses by name, and the student's logits [B, C] or embedding [B, D].

        "label" is the task's loss of the method's scores against the labels; the others are the
        method's own, named by their spots.
        """
        if self._through is not None:
            torch.compiler.cudagraph_mark_step_begin()  # earlier outputs may be overwritten
        if self.teacher is not None:
            teacher = self.teacher(batch)
        student = self._student(batch, teacher)
        losses: dict[str, Tensor] = {}
        # Without a weight, too, where every parameter is to get a gradient.
        if self.task.labelled and (label_weight or self.method.trains == "student"):
            # A task that samples the classes computes their logits in its loss.
            scores = student.any_tensor
            if student.has_logits:
                scores = self.method.scores(student, teacher, self.helpers)
            with full_precision(scores):
                label = self.task.student_loss(student, scores, batch, self.label_smoothing)
                losses["label"] = label_weight * label
        if teacher is not None:
            compared = match_classes(student, teacher)
            losses |= self.method.losses(compared, teacher, batch, self.helpers)
        elif self.method.teacherless:
            losses |= self.method.losses(student, cast(Outputs, None), batch, self.helpers)
        return losses, student.any_tensor

    def train(self, mode: bool = True) -> "Learner":
        """Switch to training or evaluation, but for what the method leaves in evaluation."""
        super().train(mode)
        if self.method.head_in_eval_mode():
            self.student.pool.eval()
        for norm in self.frozen_norms:
            norm.eval()
        return self

    def factors(self, rates: Mapping[str, float]) -> dict[nn.Parameter, float]:
        """Factors of the learning rate by parameter, from those by part (see `Optim`)."""
        return network_parts.factors(rates, self.student, self.helpers) if rates else {}

    def _student(self, batch: Batch, teacher: Outputs | None) -> Outputs:
        """The student's outputs for every look that the method reads."""
        if self.method.trains == "helpers":
            assert teacher is not None
            return teacher  # the student has no part in it
        looks = self.method.looks().student
        return by_look(dict.fromkeys(looks, self._outputs))(batch)

    def _outputs(self, batch: Batch) -> Outputs:
        """The student's outputs for one look."""
        pixels, needs = batch.pixels, self.method.student_needs() | Signal.LIVE
        needs |= self.task.learns_from()
        if Signal.PIXELS in needs:
            pixels = pixels.detach().requires_grad_()
        with torch.autocast(pixels.device.type, torch.bfloat16, self.autocast):
            return self.student.outputs(pixels, needs, self._through)
