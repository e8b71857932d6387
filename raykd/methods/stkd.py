"""Similarity transfer: KD on mixed samples.

Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Look, Outputs
from raykd.methods.base import (
    MASKED_LOGIT,
    Coverage,
    Looks,
    Method,
    Schedule,
    divergence,
    full_precision,
    precise,
    soft_cross_entropy,
    value_at,
)


def mixed_output(clean: Tensor, partner: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """log(w softmax(clean / T) + (1 - w) softmax(partner / T)) [B, C], with weights w [B]."""
    weights = weights[:, None].to(clean.dtype)
    log_clean = F.log_softmax(clean / temperature, dim=1) + weights.log()
    log_partner = F.log_softmax(partner / temperature, dim=1) + (1 - weights).log()
    return torch.logaddexp(log_clean, log_partner)


def incorrect_divergence(
    student: Tensor, teacher: Tensor, mixed: Tensor, temperature: float
) -> Tensor:
    """`divergence` over the classes of neither mixed sample; `mixed` (bool [B, C]) masks theirs."""
    target = F.log_softmax(teacher.masked_fill(mixed, MASKED_LOGIT), dim=1)
    return divergence(student.masked_fill(mixed, MASKED_LOGIT), target, temperature)


class STKD(Method):
    """weight * T**2 * KL(q || softmax(student / T)) on mixed samples, with mixed labels.

    Zhao et al. 2021, arXiv 2103.10047. There is no public code and only the abstract was available:
    the equations are a reconstruction, and each part is an option:

    - `teacher`: q is the teacher's prediction for the mixed sample ("mixed_input", the default:
      KD with mixup), or the mixture of its predictions for the two samples ("mixed_output"), which
      a cache of unmixed samples provides.
    - `incorrect_only`: weight of the same divergence over the classes of neither sample ("the
      incorrect classes' similarities").
    - `clean_kd`: weight of KD on the unmixed samples; costs the student a second forward.

    Partner and weight of each sample are functions of its key, so mixed samples can be cached.
    `alpha` 1, T 4, weight 0.9 and label weight 0.1 are our choices.
    """

    title: ClassVar[str] = "Zhao et al. 2021, arXiv 2103.10047"
    label_weight: ClassVar[Schedule] = 0.1

    name: Literal["stkd"] = "stkd"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature T of both networks' probabilities."""
    weight: Schedule = 0.9
    """Factor of the loss: a number, [[first epoch, value], ...], or a ramp."""
    teacher: Literal["mixed_input", "mixed_output"] = "mixed_input"
    """Target q: the teacher's answer for the mixture, or the mixture of its two answers."""
    mix: Literal["mixup", "cutmix"] = "mixup"
    """Mixing of two samples: a blend, or a box of the partner."""
    alpha: float = Field(default=1.0, gt=0, le=Limits.TEMPERATURE)
    """Parameter alpha of Beta(alpha, alpha), which draws the sample's own weight; 1 is uniform."""
    incorrect_only: float = Field(default=0.0, ge=0, le=Limits.WEIGHT)
    """Weight of the divergence over the classes of neither sample; 0: none."""
    clean_kd: float = Field(default=0.0, ge=0, le=Limits.WEIGHT)
    """Weight of KD on the unmixed samples; 0: none, and no second forward."""

    def accepts(self, coverage: Coverage) -> bool:
        """True where KD accepts it, but `incorrect_only` needs all classes.

        Merged classes differ between predictions, so two predictions cannot be mixed, and the
        labels of clean samples may be among them.
        """
        if coverage.classes == "all":
            return True
        one_prediction = self.teacher == "mixed_input" and not self.clean_kd
        if self.incorrect_only or (coverage.classes == "merged" and not one_prediction):
            return False
        return coverage.suits(self.temperature)

    def mixing(self) -> tuple[Literal["mixup", "cutmix"], float]:
        """The mixing of its fields."""
        return self.mix, self.alpha

    def looks(self) -> Looks:
        """Mixed samples; unmixed ones and partners where an option reads them."""
        clean: tuple[Look, ...] = ("clean",) if self.clean_kd else ()
        if self.teacher == "mixed_output":
            return Looks(("given", *clean), ("clean", "partner"))
        return Looks(("given", *clean), ("given", *clean))

    def reads_labels(self) -> bool:
        """True where an option reads classes of neither sample, or clean samples."""
        return bool(self.incorrect_only or self.clean_kd)

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """All terms, at the spot "logits"."""
        with full_precision(student.logits):
            logits, weight = precise(student.logits), value_at(self.weight, batch.epoch)
            target = self._target(teacher, batch)
            loss = weight * divergence(logits, target, self.temperature)
            if self.incorrect_only:
                mixed = _mixed_classes(batch, logits)
                incorrect = incorrect_divergence(logits, target, mixed, self.temperature)
                loss = loss + self.incorrect_only * incorrect
            if self.clean_kd:
                loss = loss + self.clean_kd * self._clean(student, teacher, batch, weight)
            return {"logits": loss}

    def _target(self, teacher: Outputs, batch: Batch) -> Tensor:
        """Target for the mixed samples: log-probabilities [B, C]."""
        if self.teacher == "mixed_input":
            return F.log_softmax(precise(teacher.logits) / self.temperature, dim=1)
        assert batch.weights is not None, "the batch is not mixed"
        clean, partner = (precise(teacher.look(look).logits) for look in ("clean", "partner"))
        return mixed_output(clean, partner, batch.weights, self.temperature)

    def _clean(self, student: Outputs, teacher: Outputs, batch: Batch, weight: float) -> Tensor:
        """KD and the labels' cross entropy on the unmixed samples."""
        z_s, z_t = precise(student.look("clean").logits), precise(teacher.look("clean").logits)
        label = F.cross_entropy(z_s, batch.looks["clean"].targets)
        return (1 - weight) * label + weight * soft_cross_entropy(z_s, z_t, self.temperature)


def _mixed_classes(batch: Batch, logits: Tensor) -> Tensor:
    """Mask of the classes in each mixed sample, bool [B, C]."""
    if batch.targets.dim() == 2:
        return batch.targets > 0
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(
        1, batch.targets[:, None], value=True
    )
