"""Dense distillation: the student's last map, projected, against the teacher's; no labels.

Shapes: B batch, K channels, H, W and h, w places per side, D teacher's channels, T places.
"""

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.base import Method, Schedule, Stages, full_precision, precise, value_at
from raykd.methods.feature_maps import deepest, last_shape, map_shape, pooled_to_grid, resized
from raykd.methods.standardiser import Standardisation, Standardiser

_PLACES = 512  # rows of a Gram matrix, at most
_BETWEEN_PLACES = ("gram_mse", "gram_kl", "channel_kl")  # without a gradient where there is one
_TEMPERATURES = {"gram_kl": 0.07, "channel_kl": 4.0}
Distance = Literal[
    "mse", "smooth_l1", "cosine", "balanced", "theia", "dampened_mse", "gram_mse", "gram_kl",
    "channel_kl",
]  # fmt: skip


class DenseDistillation(Method):
    """weight * a distance between the last maps of student s and teacher t, place by place.

    The student's map goes through a 1x1 convolution, and then, bilinear, to the teacher's grid (in
    this order, since the other one starves its high frequencies: NVIDIA-TAO/tao-pytorch's trainer
    of RADIO). Of a transformer the map is its patch tokens after the last norm.

    mse           mean over places and channels of (s - t)**2: version 2 of LightlyTrain's
                  distillation, with `blocks: 2`, and RADIO's spatial loss after `standardise:
                  phi_s` (RADIOv2.5; C-RADIOv4, arXiv 2601.17237, equation 1)
    smooth_l1     torch's smooth L1 with `beta`, mean over places and channels
    cosine        mean over places of 1 - cos(s, t)
    balanced      mean over places of 0.9 * (1 - cos(s, t)) + 0.1 * smooth L1: AM-RADIO's spatial
                  loss (Ranzinger et al. 2024, arXiv 2312.06709; beta = 2 in NVIDIA's trainer)
    theia         0.9 * (1 - cos of the whole maps as one vector) + 0.1 * smooth L1 with beta 1
                  (Shang et al. 2024, arXiv 2407.20179; with `standardise: channel`)
    dampened_mse  d**2 / 2 where |d| < 1, else 2 sqrt(|d|) - 1.5: an option of NVIDIA's trainer
    gram_mse      squared difference of the cosines between all pairs of at most 512 places
    gram_kl       mean over places of KL between the softmaxes of their cosines with all places, at
                  temperature 0.07: the local term of version 3 of LightlyTrain's distillation,
                  whose global term is `feature_distillation` with `distance: queue`
    channel_kl    mean over channels of KL between softmaxes over places, at temperature 4, times
                  its square (CWD, Shu et al. 2021, arXiv 2011.13256)

    With `blocks: 2`, t has the channels of the last two blocks of a plain transformer, each after
    the last norm, or (ours) of the last two stages of another network, at the last one's size.
    The weight, that of labels beside it and the choice of balanced as the default are ours, and so
    is `grid`.
    """

    title: ClassVar[str] = "LightlyTrain's v2 and v3; RADIO, arXiv 2312.06709; Theia, 2407.20179"
    cost: ClassVar[str] = "B T K D, gram: B T^2 D"

    name: Literal["dense_distillation"] = "dense_distillation"
    distance: Distance = "balanced"
    """Distance between the student's mapped map and the teacher's."""
    weight: Schedule = 1.0
    """Factor of the method's loss: a number, [[first epoch, value], ...], or a ramp."""
    standardise: Standardisation = "none"
    """Standardisation of the teacher's channels, from its outputs for some training images."""
    grid: int | None = Field(default=None, ge=1, le=Limits.PIXELS)
    """Cells per side to which the teacher's map is average-pooled first; null: as it is."""
    blocks: int = Field(default=1, ge=1, le=2)
    """Blocks of the teacher whose maps are compared, side by side: the last, or the last two."""
    beta: float = Field(default=2.0, gt=0, le=Limits.WEIGHT)
    """Difference from which on smooth L1 is linear, of `smooth_l1` and `balanced`."""
    temperature: float | None = Field(default=None, gt=0, le=Limits.TEMPERATURE)
    """Temperature of `gram_kl` and `channel_kl`; null: 0.07 and 4."""

    def needs(self) -> Signal:
        """The last maps, of the teacher with the block before it where that counts."""
        return Signal.MAP | Signal.BLOCKS if self.blocks == 2 else Signal.MAP

    def student_needs(self) -> Signal:
        """The last map."""
        return Signal.MAP

    def map_grid(self) -> int | None:
        """`grid`."""
        return self.grid

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """The last stages."""
        return {deepest(student): deepest(teacher)}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The projection, and what standardises.

        Raises `ConfigError` without stages, and where places are compared and a map has just one.
        """
        width, *size = map_shape(teacher, self.name, self.blocks)
        mine, *sizes = last_shape(student, self.name)
        if self.distance in _BETWEEN_PLACES and 1 in (prod(size), prod(sizes), self.grid):
            raise ConfigError(
                f"distance {self.distance!r} compares places with each other, and the student's "
                f"map has {prod(sizes)}, the teacher's {1 if self.grid == 1 else prod(size)}; "
                "choose another distance, a larger grid or larger images"
            )
        projection = linear_map(mine, width, places=True)
        helpers = nn.ModuleDict({"projection": projection})
        if self.standardise != "none":
            helpers["standardiser"] = Standardiser(width, self.standardise)
        return helpers

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Fit the standardisation."""
        standardiser = helpers["standardiser"]
        assert isinstance(standardiser, Standardiser)
        standardiser.calibrate(self._target(outputs).flatten(2) for outputs in teacher)

    def calibration_reads(self) -> str:
        """The standardisation, and which map it is of."""
        return f"{self.standardise} {self.grid} {self.blocks}"

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The weighted distance, at the student's last stage."""
        with full_precision(student.map):
            target = self._target(teacher)
            mapped = resized(helpers["projection"](precise(student.map)), target.shape[2:])
            mapped, target = mapped.flatten(2), target.flatten(2)
            if "standardiser" in helpers:
                target = helpers["standardiser"](target)
            loss = self.distances(mapped, target).mean()
            return {student.map_stage: value_at(self.weight, batch.epoch) * loss}

    def distances(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The distance [B] of each sample, from vectors [B, D, T] of equal shapes."""
        if self.distance in ("gram_kl", "channel_kl"):
            temperature = self.temperature or _TEMPERATURES[self.distance]
            compare = gram_kl if self.distance == "gram_kl" else channel_kl
            return compare(student, teacher, temperature)
        if self.distance in ("smooth_l1", "balanced"):
            linear = _elementwise(student, teacher, beta=self.beta)
            if self.distance == "smooth_l1":
                return linear
            return 0.9 * cosine_distance(student, teacher).mean(1) + 0.1 * linear
        return _DISTANCES[self.distance](student, teacher)

    def _target(self, teacher: Outputs) -> Tensor:
        """The teacher's map [B, D, h, w]."""
        return pooled_to_grid(precise(teacher.map), self.grid)


def linear_map(width: int, other: int, *, places: bool = False) -> nn.Module:
    """A linear map of vectors, or of maps place by place, with LightlyTrain's first weights."""
    projection = nn.Conv2d(width, other, 1) if places else nn.Linear(width, other)
    nn.init.trunc_normal_(projection.weight, std=0.02)
    nn.init.zeros_(cast(Tensor, projection.bias))
    return projection


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine [B, T] of vectors [B, D, T]."""
    return 1 - F.cosine_similarity(student, teacher, dim=1)


def _elementwise(student: Tensor, teacher: Tensor, beta: float = 1.0) -> Tensor:
    return F.smooth_l1_loss(student, teacher, reduction="none", beta=beta).mean((1, 2))


def _mse(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean((1, 2))


def _theia(student: Tensor, teacher: Tensor) -> Tensor:
    whole = cosine_distance(student.flatten(1), teacher.flatten(1))
    return 0.9 * whole + 0.1 * _elementwise(student, teacher)


def _dampened_mse(student: Tensor, teacher: Tensor) -> Tensor:
    difference = (student - teacher).abs()
    beyond = 2 * (difference + 1e-8).sqrt() - 1.5
    return torch.where(difference < 1, difference.square() / 2, beyond).mean((1, 2))


def _gram(vectors: Tensor) -> Tensor:
    """Cosines [B, T, T] between places."""
    unit = F.normalize(vectors, dim=1)
    return unit.mT @ unit


def _gram_mse(student: Tensor, teacher: Tensor) -> Tensor:
    places = student.shape[2]
    if places > _PLACES:
        chosen = torch.arange(_PLACES, device=student.device) * places // _PLACES
        student, teacher = student[:, :, chosen], teacher[:, :, chosen]
    return (_gram(student) - _gram(teacher)).square().mean((1, 2))


def gram_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL [B] of the softmaxes of each place's cosines with all, mean over places."""
    mine, theirs = (_gram(x) / temperature for x in (student, teacher))
    return _kl(mine, theirs).mean(1)


def channel_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T**2 KL [B] of each channel's softmax over places, mean over channels."""
    mine, theirs = student / temperature, teacher / temperature
    return _kl(mine, theirs).mean(1) * temperature**2


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the softmaxes of logits over the last axis."""
    log_student, log_teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)


_DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": _mse,
    "cosine": lambda student, teacher: cosine_distance(student, teacher).mean(1),
    "theia": _theia,
    "dampened_mse": _dampened_mse,
    "gram_mse": _gram_mse,
}
