"""Distillation of what several teachers see: embeddings and last maps of each; no labels.

Shapes: B batch, K student's width, D teacher's, T places, M teachers.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from raykd.core import keyed_random
from raykd.core.errors import ConfigError
from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.base import Method, Schedule, Stages, full_precision, precise, value_at
from raykd.methods.dense_distillation import cosine_distance, linear_map
from raykd.methods.directions import Dispersion
from raykd.methods.feature_maps import deepest, last_shape, pool_to, pooled_to_grid, resized
from raykd.methods.helper_kinds import Fitted
from raykd.methods.stage_heads import head_stages
from raykd.methods.standardiser import Standardisation, Standardiser

_HIDDEN, _LAST_HIDDEN = 768, 3072  # channels within projections of a ladder
_Share = Annotated[float, Field(ge=0, le=Limits.WEIGHT)]


class Ladder(nn.Module):
    """Sum of projections of several stages, each of two layers: UNIC's ladder of projectors."""

    def __init__(self, widths: Sequence[int], width: int, *, places: bool) -> None:
        super().__init__()
        self.rungs = nn.ModuleList()
        for number, own in enumerate(widths, 1):
            hidden = _LAST_HIDDEN if number == len(widths) else _HIDDEN
            first, second = (linear_map(a, b, places=places) for a, b in
                             ((own, hidden), (hidden, width)))  # fmt: skip
            self.rungs.append(nn.Sequential(first, nn.GELU(), second))

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Vectors [B, D], or maps [B, D, H, W], from those of each stage in depth order."""
        steps = [rung(x) for rung, x in zip(self.rungs, stages, strict=True)]
        return torch.stack(steps).sum(0)


class PanelDistillation(Method):
    """Mean over samples and teachers of the distances of their embeddings and of their maps.

    A distance of vectors is share * (1 - cosine) + (1 - share) * smooth L1 (mean over channels), of
    maps its mean over places. Each teacher has projections of its own: a linear map for the
    embedding and a 1x1 convolution for the map, which is then brought to the teacher's grid.

    The defaults are UNIC's (Sariyildiz et al. 2024, arXiv 2408.05088, its code): shares of a half,
    channels standardised, and teacher dropping. Of each sample the teacher with the largest
    distance is kept, and every other with probability 1 - `drop`; the distances that are kept are
    averaged over the batch. There, statistics are running means (here those of training images:
    ours), and a ladder of projectors reads every block: `projector: ladder`, where the default, the
    last block alone, is ours. The draws follow from the sample's key.

    AM-RADIO's losses (Ranzinger et al. 2024, arXiv 2312.06709) are `embedding_distance: cosine`,
    `map_share: 0.9`, `beta: 2.0`, `standardise: none`, `drop: 0.0`. RADIOv2.5's and PHI-S's (arXiv
    2410.01680) are `embedding_distance: cosine`, `map_distance: mse`, `standardise: phi_s`, `drop:
    0.0`, and C-RADIOv4's (arXiv 2601.17237, equations 1 and 7) these with `embedding_distance:
    angle`. These add both kinds and all teachers, so at weight 1 they are 2 M times those here.
    """

    title: ClassVar[str] = "UNIC, arXiv 2408.05088; AM-RADIO, 2312.06709; C-RADIOv4, 2601.17237"
    cost: ClassVar[str] = "M B T K D"
    panel: ClassVar[bool] = True
    joint: ClassVar[bool] = True

    name: Literal["panel_distillation"] = "panel_distillation"
    weight: Schedule = 1.0
    """Factor of the method's losses: a number, [[first epoch, value], ...], or a ramp."""
    embedding_distance: Literal["mixed", "cosine", "angle"] = "mixed"
    """Distance of embeddings: with `embedding_share` after their standardisation; or of embeddings
    as they are, 1 - cosine or the squared angle over the teacher's dispersion.
    """
    map_distance: Literal["mixed", "mse"] = "mixed"
    """Distance of maps: with `map_share`, or the mean squared difference over channels."""
    embedding_share: float = Field(default=0.5, ge=0, le=1)
    """Share of 1 - cosine in the distance of embeddings; the rest is smooth L1."""
    map_share: float = Field(default=0.5, ge=0, le=1)
    """Share of 1 - cosine in the distance of maps; the rest is smooth L1."""
    beta: float = Field(default=1.0, gt=0, le=Limits.WEIGHT)
    """Difference from which on smooth L1 is linear."""
    standardise: Standardisation = "channel"
    """Standardisation of each teacher's channels, from its outputs for some training images."""
    drop: float = Field(default=0.5, ge=0, le=1)
    """Probability that a teacher other than the farthest is left out of a sample."""
    grid: int | None = Field(default=None, ge=1, le=Limits.PIXELS)
    """Cells per side to which the teachers' maps are average-pooled first; null: as they are."""
    projector: Literal["linear", "ladder"] = "linear"
    """Projections of the student: linear ones of its last stage, or sums of those of all stages,
    each of two layers, whose earlier maps are average-pooled to the last one's size first (ours).
    """
    shares: tuple[_Share, ...] | None = None
    """Weight of each teacher in the mean, in any unit, as in RADIO's trainer; null: equal."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shares is not None and not any(self.shares):
            raise ValueError("shares: all are 0; give one teacher more")
        return self

    def needs(self) -> Signal:
        """Embeddings and last maps."""
        return Signal.EMBEDDING | Signal.MAP

    def student_needs(self) -> Signal:
        """The same, with all stages for a ladder."""
        return self.needs() | Signal.FEATURES if self.projector == "ladder" else self.needs()

    def map_grid(self) -> int | None:
        """`grid`."""
        return self.grid

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """The last stages, and the embeddings."""
        return {deepest(student): deepest(teacher), "embedding": "embedding"}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """Projections and standardisations of each teacher, by its number.

        Raises `ConfigError` for another number of shares.
        """
        helpers, members = nn.ModuleDict(), teacher.panel or (teacher,)
        if self.shares is not None and len(self.shares) != len(members):
            raise ConfigError(
                f"method.shares: expected as many as there are teachers, {len(members)}, got "
                f"{len(self.shares)}; give one to each teacher, in their order"
            )
        channels = last_shape(student, self.name)[0]
        for number, member in enumerate(members):
            width = last_shape(member, self.name)[0]
            own = nn.ModuleDict(
                {
                    "embedding": self._projection(student, student.embedding, member.embedding),
                    "map": self._projection(student, channels, width, places=True),
                }
            )
            if self.embedding_distance == "angle":
                own["dispersion"] = Dispersion()
            elif self.embedding_distance == "mixed" and self.standardise != "none":
                own["standard_embedding"] = Standardiser(member.embedding, self.standardise)
            if self.standardise != "none":
                own["standard_map"] = Standardiser(width, self.standardise)
            helpers[str(number)] = own
        return helpers

    def _projection(
        self, student: Shapes, last: int, width: int, *, places: bool = False
    ) -> nn.Module:
        """From the student's last vectors or map, of `last` channels, and those before it."""
        if self.projector == "linear":
            return linear_map(last, width, places=places)
        before = [student.features[stage][0] for stage in head_stages(student.features)]
        return Ladder([*before, last], width, places=places)

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Fit the standardisations and dispersions of each teacher."""
        fitted = [
            (number, name, helper)
            for number, own in enumerate(helpers.values())
            for name, helper in cast(nn.ModuleDict, own).items()
            if isinstance(helper, Fitted)
        ]
        for answer in teacher:  # once for all of them: maps are large
            for number, name, helper in fitted:
                kind = "map" if name == "standard_map" else "embedding"
                target = self._target(_members(answer)[number], kind).flatten(2)
                helper.observe(target.squeeze(2) if isinstance(helper, Dispersion) else target)
        for _, _, helper in fitted:
            helper.settle()

    def calibration_reads(self) -> str:
        """The standardisation, and what it is of."""
        return f"{self.standardise} {self.embedding_distance} {self.grid}"

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The weighted distances of the teachers that are kept, half of each kind."""
        with full_precision(student.map):
            apart: dict[str, list[Tensor]] = {"map": [], "embedding": []}
            for member, own in zip(_members(teacher), helpers.values(), strict=True):
                own = cast(nn.ModuleDict, own)
                for kind, distances in apart.items():
                    distances.append(self._distance(student, member, kind, own))
            by_kind = {kind: torch.stack(distances) for kind, distances in apart.items()}
            kept = self.kept(sum(by_kind.values()).detach(), batch)  # pyright: ignore[reportAttributeAccessIssue]
            weight = value_at(self.weight, batch.epoch) / 2
            total = kept.sum().clamp_min(torch.finfo(kept.dtype).tiny)
            losses = {kind: weight * (kept * x).sum() / total for kind, x in by_kind.items()}
            return {student.map_stage: losses["map"], "embedding": losses["embedding"]}

    def kept(self, distances: Tensor, batch: Batch) -> Tensor:
        """Factors [M, B], the share of what counts and 0 of what does not, of distances [M, B]."""
        shares = self.shares or (1.0,) * len(distances)
        kept = torch.ones_like(distances)
        if self.drop and len(distances) > 1:
            kept = self._not_dropped(_of_shares(distances, shares), batch)
        return torch.stack([share * row for share, row in zip(shares, kept, strict=True)])

    def _not_dropped(self, distances: Tensor, batch: Batch) -> Tensor:
        """1 of the farthest teacher and of those that the draw keeps, 0 of others: [M, B]."""
        farthest = distances == distances.amax(0)
        drawn = torch.stack(
            [
                keyed_random.uniform(number, batch.ids, batch.epoch, keyed_random.TEACHERS)
                for number in range(len(distances))
            ]
        )
        return (farthest | (drawn >= self.drop)).to(distances.dtype)

    def _distance(
        self, student: Outputs, teacher: Outputs, kind: str, own: nn.ModuleDict
    ) -> Tensor:
        """Distances [B] of one teacher's embeddings or maps."""
        target = self._target(teacher, kind)
        mine = precise(student.embedding if kind == "embedding" else student.map)
        mapped = own[kind]([*_before(student, kind), mine] if self.projector == "ladder" else mine)
        if "dispersion" in own and kind == "embedding":
            return own["dispersion"](mapped, target.squeeze(2))
        if kind == "embedding":
            mapped = mapped[..., None]
        else:
            mapped, target = resized(mapped, target.shape[2:]).flatten(2), target.flatten(2)
        if f"standard_{kind}" in own:
            target = own[f"standard_{kind}"](target)
        if kind == "map" and self.map_distance == "mse":
            return (mapped - target).square().mean((1, 2))
        share = self.embedding_share if kind == "embedding" else self.map_share
        if kind == "embedding" and self.embedding_distance == "cosine":
            share = 1.0
        return mixed_distance(mapped, target, share, self.beta)

    def _target(self, teacher: Outputs, kind: str) -> Tensor:
        """Embeddings [B, D, 1], or maps [B, D, h, w]."""
        if kind == "embedding":
            return precise(teacher.embedding)[..., None]
        return pooled_to_grid(precise(teacher.map), self.grid)


def _before(student: Outputs, kind: str) -> list[Tensor]:
    """Outputs of the student's stages before the last: vectors [B, K], or maps of its size."""
    maps = [precise(student.features[stage]) for stage in head_stages(student.features)]
    if kind == "embedding":
        return [x.mean((2, 3)) for x in maps]
    height, width = student.map.shape[2:]
    return [pool_to(x, (height, width)) for x in maps]


def _of_shares(distances: Tensor, shares: Sequence[float]) -> Tensor:
    """Distances [M, B], those of teachers without a share below all others."""
    rows = zip(distances, shares, strict=True)
    return torch.stack([x if share else torch.full_like(x, -torch.inf) for x, share in rows])


def _members(teacher: Outputs) -> tuple[Outputs, ...]:
    return teacher.panel or (teacher,)


def mixed_distance(student: Tensor, teacher: Tensor, share: float, beta: float = 1.0) -> Tensor:
    """share * (1 - cosine) + (1 - share) * smooth L1, mean over places: [B] of [B, D, T]."""
    linear = F.smooth_l1_loss(student, teacher, reduction="none", beta=beta).mean((1, 2))
    return share * cosine_distance(student, teacher).mean(1) + (1 - share) * linear
