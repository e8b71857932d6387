"""Multi-level logit distillation: instance, class and batch alignment at five temperatures.

Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Look, Outputs
from raykd.methods.base import (
    Looks,
    Method,
    Schedule,
    finite,
    full_precision,
    precise,
    standardise,
    value_at,
)

REUSED = (2.0, 6.0)  # temperatures at which the released code compares weak logits twice


def class_gram(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared differences of P^T P, summed over rows: [C], from probabilities P [B, C]."""
    return (teacher.T @ teacher - student.T @ student).square().sum(1)


def batch_gram(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared differences of P P^T, summed over rows: [B], from probabilities P [B, C]."""
    return (teacher @ teacher.T - student @ student.T).square().sum(1)


def divergences(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T**2 KL(teacher || student) of each sample [B]."""
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = finite(F.log_softmax(teacher / temperature, dim=1))
    each = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(1)
    return temperature**2 * each


class MLKD(Method):
    """Sum over T of weight * (instance + class + batch alignment), on a weak and a strong view.

    Jin, Wang and Lin 2023, "Multi-level logit distillation", CVPR 2023. On the weak view (the run's
    augmentation): instance = T**2 KL per sample, class = |P_t^T P_t - P_s^T P_s|**2 / C, batch =
    |P_t P_t^T - P_s P_s^T|**2 / B, restricted to the samples (for class: to the classes) with a
    confidence of at most the median. On the strong view (`run.strong`): instance, and the labels'
    cross entropy. Defaults of the official code: T 4, 2, 3, 5, 6; weight 0.9, label weight 0.1 on
    each view.

    `as_released` follows the released code where it differs from its intent: the masks scale the
    whole loss by their mean, and at T 2 and 6 the instance term of the strong view compares the
    weak view's logits. `strong_view: false` omits the second view. `standardise` applies logit
    standardisation to the instance term (arXiv 2403.01427, as in its code).
    """

    title: ClassVar[str] = "Jin et al. 2023, CVPR"
    cost: ClassVar[str] = "B C (B + C) and a second forward"
    label_weight: ClassVar[Schedule] = 0.1

    name: Literal["mlkd"] = "mlkd"
    temperatures: tuple[Annotated[float, Field(gt=0, le=Limits.TEMPERATURE)], ...] = Field(
        default=(4.0, 2.0, 3.0, 5.0, 6.0), min_length=1
    )
    """Temperatures T over which the terms are summed."""
    weight: Schedule = 0.9
    """Factor of every term: a number, [[first epoch, value], ...], or a ramp."""
    strong_view: bool = True
    """Train on a strongly augmented view (`run.strong`) as well."""
    strong_label_weight: Schedule = 0.1
    """Factor of the labels' cross entropy on the strong view."""
    as_released: bool = False
    """Follow the released code where it differs from its intent."""
    standardise: bool = False
    """Standardise the logits of the instance term (arXiv 2403.01427)."""

    def looks(self) -> Looks:
        """The given view and the strong one, for both networks."""
        views: tuple[Look, ...] = ("given", "strong") if self.strong_view else ("given",)
        return Looks(views, views)

    def reads_labels(self) -> bool:
        """True where there is a strong view, whose cross entropy counts."""
        return self.strong_view

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """All terms, at the spot "logits"."""
        with full_precision(student.logits):
            weak = precise(student.logits), precise(teacher.logits)
            loss = self._weak(*weak)
            if not self.strong_view:
                return {"logits": value_at(self.weight, batch.epoch) * loss}
            views = student.look("strong"), teacher.look("strong")
            strong = precise(views[0].logits), precise(views[1].logits)
            for temperature in self.temperatures:
                reused = self.as_released and temperature in REUSED
                loss = loss + self._instances(*(weak if reused else strong), temperature).mean()
            label = F.cross_entropy(strong[0], batch.looks["strong"].targets)
            label = value_at(self.strong_label_weight, batch.epoch) * label
            return {"logits": value_at(self.weight, batch.epoch) * loss + label}

    def _instances(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Instance term of each sample [B]."""
        if self.standardise:
            student, teacher = standardise(student), standardise(teacher)
        return divergences(student, teacher, temperature)

    def _weak(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Instance, class and batch terms of the weak view, summed over temperatures."""
        confidence = F.softmax(teacher, dim=1)
        samples, classes = _lower_half(confidence.amax(1)), _lower_half(confidence.sum(0))
        loss = student.new_zeros(())
        for temperature in self.temperatures:
            p_s, p_t = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher))
            instances = self._instances(student, teacher, temperature)
            loss = loss + self._masked(instances, samples).mean()
            loss = loss + self._masked(class_gram(p_s, p_t), classes).sum() / p_s.shape[1]
            loss = loss + self._masked(batch_gram(p_s, p_t), samples).sum() / p_s.shape[0]
        return loss

    def _masked(self, values: Tensor, mask: Tensor) -> Tensor:
        """The values times the mask, or, `as_released`, times the mean of the mask."""
        return values * (mask.mean() if self.as_released else mask)


def _lower_half(confidence: Tensor) -> Tensor:
    """1 where a value is at most the median (numpy's percentile 50), else 0."""
    return (confidence <= torch.quantile(confidence, 0.5)).to(confidence.dtype)
