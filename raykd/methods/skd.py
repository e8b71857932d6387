"""Spherical knowledge distillation: only the direction of the logits is distilled.

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
    """`normalise` of logits [B, C] whose rows have these moments [B, 2]: mean and deviation.

    For rows of which some classes only were kept, and the moments of all.
    """
    mean, deviation = moments[:, :1], moments[:, 1:]
    return radius * (logits - mean) / (deviation.square() + EPSILON).sqrt()


def to_teacher_std(student: Tensor, teacher: Tensor, moments: Tensor | None = None) -> Tensor:
    """Student logits [B, C] with each row scaled to the unbiased std of the teacher's row.

    The reference divides by the student's std alone and gives NaN for a constant row; the
    1e-7 in the denominator is a decision taken here. `moments` as in `Outputs`.
    """
    wanted = teacher.std(1, keepdim=True)
    if moments is not None:
        count = student.shape[1]
        wanted = moments[:, 1:] * (count / (count - 1)) ** 0.5
    return student * (wanted / (student.std(1, keepdim=True) + EPSILON))


def to_sphere(logits: Tensor, radius: Tensor | float) -> Tensor:
    """Logits [B, C] with each row scaled to the L2 norm `radius`; not shift invariant."""
    return radius * logits / logits.norm(dim=1, keepdim=True).clamp_min(EPSILON)


class Radius(Calibrated):
    """The radius of the sphere, and whether the teacher has set it yet; buffers, not trained."""

    value: Tensor

    def __init__(self, value: float | None) -> None:
        super().__init__()
        self.given = value is not None
        self.register_buffer("value", torch.tensor(1.0 if value is None else value))
        self.register_buffer("known", torch.tensor(self.given))


class SKD(Method):
    """weight * T**2 * KL(softmax(t' / T) || softmax(s' / T)) on normalised logits s' and t'.

    Guo et al. 2020, arXiv 2010.07485. The labels' cross entropy reads s' too: the official
    README calls that mandatory, and the code does it in every variant.

    - `layer_norm` (the README's form, and the default): both rows are shifted to mean 0 and
      scaled to the population std `radius`.
    - `teacher_std` (the official repository's last training code): the student's row takes the
      unbiased std of the teacher's row, the teacher's stays; `radius` is not used.
    - `l2` (README note): both rows are scaled to the L2 norm `radius`.

    `radius` None is the README's rule for choosing it: the mean row std (for `l2`, the mean row
    norm) of the teacher's logits over the training set, here over at most 16,384 rows of it.
    With `layer_norm`, C = 10 and radius 2 no probability can pass 0.989: use 3 or more there.
    T = 4 is the README's. 0.9 / 0.1 is the first phase of the official ImageNet schedule:
    `weight: [[0, 0.9], [60, 0.5], [80, 0.1]]` and `label_weight: [[0, 0.1], [60, 0.5], [80, 0.9]]`.
    For CIFAR the paper's values were not seen: T = 4, 0.9 / 0.1 and the automatic radius are
    decisions taken here.
    """

    title: ClassVar[str] = "Guo et al. 2020, arXiv 2010.07485"
    label_weight: ClassVar[Schedule] = 0.1
    released: ClassVar[tuple[str, ...]] = ("radius",)

    name: Annotated[Literal["spherical_kd", "skd"], canonical("spherical_kd")] = "spherical_kd"
    temperature: float = Field(default=4.0, gt=0, le=Limits.TEMPERATURE)
    weight: Schedule = 0.9
    variant: Variant = "layer_norm"
    radius: float | None = Field(
        default=None, gt=0, le=Limits.WEIGHT
    )  # None: from the teacher's logits

    def accepts(self, coverage: Coverage) -> bool:
        """True where KD accepts it: a cache of few classes keeps a row's moments, not its norm.

        Where the other classes are merged there is no student row to normalise.
        """
        norm = self.variant != "l2" or coverage.classes == "all"
        return coverage.suits(self.temperature) and norm and coverage.classes != "merged"

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The radius, as a buffer."""
        return nn.ModuleDict({"radius": Radius(self.radius)})

    def needs_calibration(self, helpers: nn.ModuleDict) -> bool:
        """True until the radius is taken from the teacher."""
        return self.variant != "teacher_std" and not bool(_radius(helpers).known)

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Set the radius to the teacher's mean row std, or row norm."""
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

    def scores(self, student: Outputs, teacher: Outputs | None, helpers: nn.ModuleDict) -> Tensor:
        """The normalised student logits; the raw ones for `teacher_std` without a teacher."""
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
        """Both normalised; for `teacher_std` the student's by the teacher's, which stay."""
        mine = self.scores(student, teacher, helpers)
        with full_precision(mine):
            theirs = precise(teacher.logits)
            if self.variant == "layer_norm" and teacher.moments is not None:
                theirs = by_moments(theirs, teacher.moments, _radius(helpers).value)
            elif self.variant != "teacher_std":
                theirs = self.scores(teacher, None, helpers)
        return mine, theirs

    def rescaling(self, helpers: nn.ModuleDict) -> Mapping[str, str | float] | None:
        """The normalisation and its radius; nothing for `teacher_std`, where no teacher is."""
        if self.variant == "teacher_std":
            return {}
        radius = float(_radius(helpers).value)
        return {"kind": self.variant, "radius": radius, "epsilon": EPSILON}

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The softened divergence of the normalised logits, at the spot "logits"."""
        mine, theirs = self.comparable(student, teacher, helpers)
        with full_precision(mine):
            loss = soft_cross_entropy(mine, theirs, self.temperature)
            return {"logits": value_at(self.weight, batch.epoch) * loss}


def _radius(helpers: nn.ModuleDict) -> Radius:
    """The radius among the helpers."""
    radius = helpers["radius"]
    assert isinstance(radius, Radius)
    return radius
