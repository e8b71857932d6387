"""Similarity transfer: the teacher's predictions for mixed samples.

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


def mixed_output(own: Tensor, partner: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """log(w softmax(own / T) + (1 - w) softmax(partner / T)): [B, C], with weights [B]."""
    weights = weights[:, None].to(own.dtype)
    log_own = F.log_softmax(own / temperature, dim=1) + weights.log()
    log_partner = F.log_softmax(partner / temperature, dim=1) + (1 - weights).log()
    return torch.logaddexp(log_own, log_partner)


def among_others(student: Tensor, teacher: Tensor, mixed: Tensor, temperature: float) -> Tensor:
    """`divergence` among the classes that are in no sample of the mix; `mixed` is bool [B, C]."""
    rest = F.log_softmax(teacher.masked_fill(mixed, MASKED_LOGIT), dim=1)
    return divergence(student.masked_fill(mixed, MASKED_LOGIT), rest, temperature)


class STKD(Method):
    """weight * T**2 * KL(q || softmax(student / T)) on mixed samples, and the mixed labels.

    Zhao et al. 2021, arXiv 2103.10047. There is no public code and only the abstract was seen, so
    the equations are a reconstruction, every part of which is an option here:

    - `teacher`: q is what the teacher says of the mixed sample ("mixed_input", the default, which
      is KD with mixup), or its predictions for the two samples, mixed ("mixed_output"), which come
      from the cache of the samples as they are.
    - `incorrect_only`: the weight of the same divergence among the classes that neither sample
      has ("the incorrect classes' similarities").
    - `clean_kd`: the weight of plain distillation on the samples before they are mixed; costs the
      student a second forward.

    Partner and weight of each sample follow from its key, so mixed samples are cached like any
    others. `alpha` 1, T 4, 0.9 and 0.1 are decisions taken here.
    """

    title: ClassVar[str] = "Zhao et al. 2021, arXiv 2103.10047"
    label_weight: ClassVar[Schedule] = 0.1

    name: Literal["stkd"] = "stkd"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    weight: Schedule = 0.9
    teacher: Literal["mixed_input", "mixed_output"] = "mixed_input"
    mix: Literal["mixup", "cutmix"] = "mixup"
    alpha: float = Field(default=1.0, gt=0, le=Limits.TEMPERATURE)  # Beta(alpha, alpha)
    incorrect_only: float = Field(default=0.0, ge=0, le=Limits.WEIGHT)
    clean_kd: float = Field(default=0.0, ge=0, le=Limits.WEIGHT)

    def accepts(self, coverage: Coverage) -> bool:
        """True where KD accepts it; terms among the incorrect classes read all of them.

        Merged classes are others in each prediction, so two predictions cannot be mixed, and
        the labels of clean samples find no class of theirs.
        """
        if coverage.classes == "all":
            return True
        alone = self.teacher == "mixed_input" and not self.clean_kd
        merged = coverage.classes == "merged"
        return (
            coverage.suits(self.temperature) and not self.incorrect_only and (alone or not merged)
        )

    def mixing(self) -> tuple[Literal["mixup", "cutmix"], float]:
        """The mixing of its fields."""
        return self.mix, self.alpha

    def looks(self) -> Looks:
        """Mixed samples; of the teacher or of both, what they are mixed from."""
        clean: tuple[Look, ...] = ("clean",) if self.clean_kd else ()
        if self.teacher == "mixed_output":
            return Looks(("given", *clean), ("clean", "partner"))
        return Looks(("given", *clean), ("given", *clean))

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """All terms, at the spot "logits"."""
        with full_precision(student.logits):
            mine, weight = precise(student.logits), value_at(self.weight, batch.epoch)
            target = self._target(teacher, batch)
            loss = weight * divergence(mine, target, self.temperature)
            if self.incorrect_only:
                others = among_others(mine, target, _mixed(batch, mine), self.temperature)
                loss = loss + self.incorrect_only * others
            if self.clean_kd:
                loss = loss + self.clean_kd * self._clean(student, teacher, batch, weight)
            return {"logits": loss}

    def _target(self, teacher: Outputs, batch: Batch) -> Tensor:
        """The target for the mixed samples: log-probabilities [B, C]."""
        if self.teacher == "mixed_input":
            return F.log_softmax(precise(teacher.logits) / self.temperature, dim=1)
        assert batch.weights is not None, "the batch is not mixed"
        own, partner = (precise(teacher.look(look).logits) for look in ("clean", "partner"))
        return mixed_output(own, partner, batch.weights, self.temperature)

    def _clean(self, student: Outputs, teacher: Outputs, batch: Batch, weight: float) -> Tensor:
        """Plain distillation on the samples before they are mixed."""
        mine = precise(student.look("clean").logits)
        theirs = precise(teacher.look("clean").logits)
        label = F.cross_entropy(mine, batch.looks["clean"].targets)
        return (1 - weight) * label + weight * soft_cross_entropy(mine, theirs, self.temperature)


def _mixed(batch: Batch, like: Tensor) -> Tensor:
    """Mask of the classes in each mixed sample, bool [B, C]."""
    if batch.targets.dim() == 2:
        return batch.targets > 0
    return torch.zeros_like(like, dtype=torch.bool).scatter_(1, batch.targets[:, None], value=True)
