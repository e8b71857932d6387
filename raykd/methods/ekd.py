"""EKD: evaluation-oriented distillation, of the ranks of pairs among the pairs of two people.

Shapes: B batch, D embedding width, P pairs, Q ranks.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at
from raykd.methods.helper_kinds import Shared

_EXPONENT = 50.0  # largest of a soft step, up or down
_Rank = Annotated[int, Field(ge=2, le=Limits.ROWS)]


class Thresholds(Shared):
    """Running thresholds of cosines: float32 [2, Q], of the student and of the teacher."""

    ranks: Tensor
    values: Tensor
    known: Tensor

    def __init__(self, ranks: Sequence[int], *, known: bool) -> None:
        """Zeros; `known` where they count from the beginning."""
        super().__init__()
        self.register_buffer("ranks", torch.tensor(ranks), persistent=False)
        self.register_buffer("values", torch.zeros(2, len(ranks)))
        self.register_buffer("known", torch.tensor(known))

    def exceeded(self, cosines: Tensor, others: Tensor) -> Tensor:
        """Thresholds [2, Q] of the cosines [2, P] of those pairs that are of two people.

        Minus infinity where no pair is. `others` (bool [P]) says which are.
        """
        none = cosines.new_full((2, 1), -torch.inf)
        falling = cosines.masked_fill(~others, -torch.inf).sort(dim=1, descending=True).values
        return torch.cat([falling, none], dim=1)[:, others.sum() // self.ranks]

    def follow(self, new: Tensor, share: float) -> None:
        """Move a share of the way to new thresholds [2, Q]; the first ones are taken as they are.

        Where one is not finite, none moves.
        """
        new = new.to(self.values)
        moved = torch.where(self.known, self.values.lerp(new, share), new)
        usable = new.isfinite().all()
        self.values.copy_(torch.where(usable, moved, self.values))
        self.known.logical_or_(usable)


class EKD(Method):
    """weight * (positive_weight * mse over pairs of one person + negative_weight * over others).

    Huang et al. 2022 (CVPR), as in its authors' code (Tencent/TFace). What is compared is the soft
    rank of a pair: the sum over q in `ranks` of sigmoid((cosine - threshold_q) / width), whose
    threshold is the cosine that one in q pairs of two people exceeds, in a running mean of the
    batches, for each network its own. Of the pairs of two people the `hardest` are compared: those
    with the largest cosines of the student.

    A batch should show several pictures of some people, as `optim.per_class: 4` sees to, or there
    is no pair of one; such a batch gives 0 for them. Thresholds of more pairs than there are
    coincide at the largest cosine: 3 of the 6 in a batch of 64, which has 2,016 pairs. Of several
    workers the thresholds are those of all pairs, and each compares its own pairs: our choice. Ours
    as well is the start of the running means from the first batch; with `start: zero`, as there,
    all pairs look alike for hundreds of steps.
    """

    title: ClassVar[str] = "Huang et al. 2022, CVPR"
    cost: ClassVar[str] = "B^2 D"

    name: Literal["ekd"] = "ekd"
    weight: Schedule = 1.0
    """Factor of the method's loss: a number, [[first epoch, value], ...], or a ramp."""
    positive_weight: float = Field(default=0.02, ge=0, le=Limits.WEIGHT)
    """Factor of the mean over pairs of one person."""
    negative_weight: float = Field(default=0.01, ge=0, le=Limits.WEIGHT)
    """Factor of the mean over pairs of two."""
    ranks: tuple[_Rank, ...] = Field(
        default=(10, 100, 1_000, 10_000, 100_000, 1_000_000), min_length=1
    )
    """Values of q: a threshold is exceeded by one in q pairs of two people."""
    width: float = Field(default=0.01, gt=0, le=Limits.WEIGHT)
    """Cosine that divides the distance from a threshold."""
    hardest: int = Field(default=2000, ge=1, le=Limits.ROWS)
    """Number of pairs of two people that are compared, at most."""
    share: float = Field(default=0.01, gt=0, le=1)
    """Share of a batch in the running mean of the thresholds."""
    start: Literal["first", "zero"] = "first"
    """Start of the running means: the first batch's thresholds, or 0."""

    def needs(self) -> Signal:
        """The embeddings."""
        return Signal.EMBEDDING

    def reads_labels(self) -> bool:
        """True: they say which pairs are of one person."""
        return True

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The thresholds."""
        known = self.start == "zero"
        return nn.ModuleDict({"thresholds": Thresholds(self.ranks, known=known)})

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The weighted differences of soft ranks, at the embedding."""
        thresholds = helpers["thresholds"]
        assert isinstance(thresholds, Thresholds)
        with full_precision(student.embedding):
            units = [F.normalize(precise(x.embedding), dim=1) for x in (student, teacher)]
            if thresholds.training:
                with torch.no_grad():
                    labels = thresholds.gather(batch.labels)
                    cosines = torch.stack([pairs(thresholds.gather(x.detach())) for x in units])
                    thresholds.follow(thresholds.exceeded(cosines, ~same(labels)), self.share)
            mine, theirs = (pairs(x) for x in units)
            ranks = [
                self.soft_ranks(cosine, values)
                for cosine, values in zip((mine, theirs), thresholds.values, strict=True)
            ]
            apart, together = (ranks[0] - ranks[1]).square(), same(batch.labels)
            hard = mine.detach().masked_fill(together, -torch.inf)
            hard = hard.topk(min(self.hardest, len(hard))).indices
            chosen = torch.zeros_like(together).index_fill(0, hard, True) & ~together
            loss = self.positive_weight * _mean(apart, together)
            loss = loss + self.negative_weight * _mean(apart, chosen)
            return {"embedding": value_at(self.weight, batch.epoch) * loss}

    def soft_ranks(self, cosines: Tensor, thresholds: Tensor) -> Tensor:
        """The soft ranks [P] of cosines [P] among thresholds [Q]."""
        steps = (cosines[:, None] - thresholds.to(cosines)) / self.width
        return steps.clamp(-_EXPONENT, _EXPONENT).sigmoid().sum(1)


def pairs(unit: Tensor) -> Tensor:
    """Cosines [P] of all pairs of unit vectors [B, D]: each row with those after it."""
    rows, others = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
    return (unit @ unit.T)[rows, others]


def same(labels: Tensor) -> Tensor:
    """True where both of a pair have one label: bool [P], in the order of `pairs`."""
    rows, others = torch.triu_indices(len(labels), len(labels), 1, device=labels.device)
    return labels[rows] == labels[others]


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values [P]; 0 where none is."""
    return (values * chosen).sum() / chosen.sum().clamp_min(1)
