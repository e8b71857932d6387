"""Spherical knowledge distillation: KD between normalised logits.

Shapes: B batch, C classes.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.base import (
    Coverage,
    Method,
    Schedule,
    canonical,
    full_precision,
    precise,
    soft_cross_entropy,
    value_at,
)
from raykd.methods.helper_kinds import Calibrated

EPSILON = 1e-7  # from the official training code
Variant = Literal["layer_norm", "teacher_std", "l2"]


def normalise(logits: Tensor, radius: Tensor | float) -> Tensor:
    """Logits [B, C] with each row shifted to mean 0 and scaled to population std `radius`.

    A constant row gives zeros, with a gradient of up to radius / sqrt(1e-7) times the loss's.
    """
    return radius * F.layer_norm(logits, logits.shape[1:], eps=EPSILON)


def by_moments(logits: Tensor, moments: Tensor, radius: Tensor | float) -> Tensor:
    """`normalise` of logits [B, C] by the moments [B, 2] (mean, population std) of all classes.

    For rows in which only some classes have their own logits.
    """
    mean, deviation = moments[:, :1], moments[:, 1:]
    return radius * (logits - mean) / (deviation.square() + EPSILON).sqrt()


def to_teacher_std(student: Tensor, teacher: Tensor, moments: Tensor | None = None) -> Tensor:
    """Student logits [B, C] with each row scaled to the unbiased std of the teacher's row.

    The reference divides by the student's std, which gives NaN for a constant row; the 1e-7 in the
    denominator is our addition. `moments` as in `Outputs`.
    """
    teacher_std = teacher.std(1, keepdim=True)
    if moments is not None:
        count = student.shape[1]
        teacher_std = moments[:, 1:] * (count / (count - 1)) ** 0.5
    return student * (teacher_std / (student.std(1, keepdim=True) + EPSILON))


def to_sphere(logits: Tensor, radius: Tensor | float) -> Tensor:
    """Logits [B, C] with each row scaled to the L2 norm `radius`; not shift invariant."""
    return radius * logits / logits.norm(dim=1, keepdim=True).clamp_min(EPSILON)


class Radius(Calibrated):
    """Radius of the sphere, a buffer; set at calibration where the recipe has None."""

    value: Tensor

    def __init__(self, value: float | None) -> None:
        super().__init__()
        self.fixed = value is not None
        self.register_buffer("value", torch.tensor(1.0 if value is None else value))
        self.register_buffer("known", torch.tensor(self.fixed))


class SKD(Method):
    """weight * T**2 * KL(softmax(t' / T) || softmax(s' / T)) on normalised logits s' and t'.

    Guo et al. 2020, arXiv 2010.07485. The labels' cross entropy reads s' too: the official
    README calls that mandatory, and the code does it in every variant.

    - `layer_norm` (the README's form, and the default): both rows are shifted to mean 0 and
      scaled to the population std `radius`.
    - `teacher_std` (the official repository's last training code): the student's row is scaled to
      the unbiased std of the teacher's row, which is unchanged; `radius` is not used.
    - `l2` (README note): both rows are scaled to the L2 norm `radius`.

    `radius` None follows the README's rule: the mean row std (for `l2`, the mean row norm) of the
    teacher's logits over the training set, here over at most 16,384 rows of it. With `layer_norm`,
    C = 10 and radius 2 no probability can exceed 0.989: use 3 or more there. T = 4 is the README's.
    0.9 / 0.1 is the first phase of the official ImageNet schedule:
    `weight: [[0, 0.9], [60, 0.5], [80, 0.1]]` and `label_weight: [[0, 0.1], [60, 0.5], [80, 0.9]]`.
    The paper's values for CIFAR were not available: T = 4, 0.9 / 0.1 and the automatic radius are
    our choices.
    """

    title: ClassVar[str] = "Guo et al. 2020, arXiv 2010.07485"
    label_weight: ClassVar[Schedule] = 0.1
    released: ClassVar[tuple[str, ...]] = ("radius",)

    name: Annotated[Literal["spherical_kd", "skd"], canonical("spherical_kd")] = "spherical_kd"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature T of both networks' normalised logits."""
    weight: Schedule = 0.9
    """Factor of the loss: a number, [[first epoch, value], ...], or a ramp."""
    variant: Variant = "layer_norm"
    """Normalisation of the logits; see the description of the method."""
    radius: float | None = Field(default=None, gt=0, le=Limits.WEIGHT)
    """Deviation (`l2`: norm) to which a row is scaled; null: the teacher's mean one."""

    def accepts(self, coverage: Coverage) -> bool:
        """True where KD accepts it, except for `l2` without all classes, and merged classes.

        A cache of some classes keeps the moments of a row, not its norm; merged classes leave no
        student row to normalise.
        """
        norm = self.variant != "l2" or coverage.classes == "all"
        return coverage.suits(self.temperature) and norm and coverage.classes != "merged"

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The radius, as a buffer."""
        return nn.ModuleDict({"radius": Radius(self.radius)})

    def needs_calibration(self, helpers: nn.ModuleDict) -> bool:
        """True until the radius is set; never for `teacher_std`."""
        return self.variant != "teacher_std" and super().needs_calibration(helpers)

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Set the radius to the mean row std of the teacher's logits, or the mean row norm."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for outputs in teacher:
            logits = outputs.logits.double().cpu()
            size = logits.norm(dim=1) if self.variant == "l2" else logits.std(1, correction=0)
            if outputs.moments is not None:
                size = outputs.moments[:, 1].double().cpu()
            total, count = total + size.sum(), count + len(size)
        radius = _radius(helpers)
        radius.value.fill_((total / count).item())
        radius.known.fill_(True)

    def calibration_reads(self) -> str:
        """The variant: the radius is a deviation, or a norm."""
        return self.variant

    def scores(self, student: Outputs, teacher: Outputs | None, helpers: nn.ModuleDict) -> Tensor:
        """Normalised student logits; the raw ones for `teacher_std` without a teacher."""
        logits = student.logits
        with full_precision(logits):
            if self.variant == "layer_norm":
                return normalise(precise(logits), _radius(helpers).value)
            if self.variant == "l2":
                return to_sphere(precise(logits), _radius(helpers).value)
            if teacher is None:
                return precise(logits)
            return to_teacher_std(precise(logits), precise(teacher.logits), teacher.moments)

    def comparable(
        self, student: Outputs, teacher: Outputs, helpers: nn.ModuleDict
    ) -> tuple[Tensor, Tensor]:
        """Normalised logits of both; for `teacher_std` the teacher's are unchanged."""
        z_s = self.scores(student, teacher, helpers)
        with full_precision(z_s):
            z_t = precise(teacher.logits)
            if self.variant == "layer_norm" and teacher.moments is not None:
                z_t = by_moments(z_t, teacher.moments, _radius(helpers).value)
            elif self.variant != "teacher_std":
                z_t = self.scores(teacher, None, helpers)
        return z_s, z_t

    def rescaling(self, helpers: nn.ModuleDict) -> Mapping[str, str | float] | None:
        """The normalisation and its radius; the identity for `teacher_std`."""
        if self.variant == "teacher_std":
            return {}
        radius = float(_radius(helpers).value)
        return {"kind": self.variant, "radius": radius, "epsilon": EPSILON}

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """KL divergence of the softened, normalised logits, at the spot "logits"."""
        z_s, z_t = self.comparable(student, teacher, helpers)
        with full_precision(z_s):
            loss = soft_cross_entropy(z_s, z_t, self.temperature)
            return {"logits": value_at(self.weight, batch.epoch) * loss}


def _radius(helpers: nn.ModuleDict) -> Radius:
    """The radius among the helpers."""
    radius = helpers["radius"]
    assert isinstance(radius, Radius)
    return radius
