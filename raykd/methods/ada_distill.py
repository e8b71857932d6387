"""AdaDistill: a margin loss against centres of classes that move with the teacher's embeddings.

Shapes: B batch, C classes, D student's embedding width, E teacher's.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods import margins
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at
from raykd.methods.embedding_map import embedding_map, mapped
from raykd.methods.helper_kinds import Shared

_LEAST = 1e-6  # smallest share of a centre that stays


class Centres(Shared):
    """A direction for each class, in the teacher's space."""

    rows: Tensor

    def __init__(self, classes: int, width: int) -> None:
        """From N(0, 0.01**2), as the authors' code."""
        super().__init__()
        self.register_buffer("rows", 0.01 * torch.randn(classes, width))

    def shares(self, student: Tensor, teacher: Tensor, labels: Tensor, *, weighted: bool) -> Tensor:
        """The share [B] of each sample's centre that stays: how near the student is to the teacher.

        The cosine of both embeddings [B, E], times that of the teacher's with the centre where
        `weighted`.
        """
        near = F.cosine_similarity(student, teacher, dim=1)
        if weighted:
            centre = F.cosine_similarity(self.rows[labels].to(teacher), teacher, dim=1)
            near = near * centre.clamp(_LEAST, 1)
        return near.clamp(_LEAST, 1)

    def move(self, shares: Tensor, teacher: Tensor, labels: Tensor, ids: Tensor) -> None:
        """Move the centres of all workers' samples, those of one class in the order of their ids.

        `teacher` are unit embeddings [B, E].
        """
        order = self.gather(ids).argsort(stable=True)
        shares, teacher, labels = (self.gather(value)[order] for value in (shares, teacher, labels))
        if not len(labels):
            return
        # After a class's samples in turn, each embedding has kept the shares of all that follow.
        shares, teacher = shares.to(self.rows), teacher.to(self.rows)
        same = labels[:, None] == labels
        weights = (1 - shares) * torch.where(same.triu(1), shares, 1.0).prod(1)
        stays = torch.where(same, shares, 1.0).prod(1)
        rows = stays[:, None] * self.rows[labels] + (same * weights) @ teacher
        first = same.int().argmax(1)  # equal bits for all samples of a class, whichever is copied
        self.rows.index_copy_(0, labels, rows[first])


class AdaDistill(Method):
    """weight * the margin loss of P student against centres that move to the teacher's embeddings.

    Boutros et al. 2024, arXiv 2407.01332, as in the authors' code (fdbtrs/AdaDistill). Before the
    loss, the centre of each sample's class keeps a share of itself, and the rest is the teacher's
    embedding of this image: a student that is far from its teacher learns from the embedding, a
    near one from the running mean. Scale 64 and margin 0.45 are of its configuration. Several
    samples of one class move it one after the other in the order of their ids, over all workers,
    and P, a linear map where the widths differ, stands before the student's embedding: both are
    our choices. The loss replaces that of the labels.
    """

    title: ClassVar[str] = "Boutros et al. 2024, arXiv 2407.01332"
    cost: ClassVar[str] = "B C E + B^2 E, memory C E"
    label_weight: ClassVar[Schedule] = 0.0
    matches: ClassVar[bool] = True

    name: Literal["ada_distill"] = "ada_distill"
    weight: Schedule = 1.0
    """Factor of the margin loss: a number, [[first epoch, value], ...], or a ramp."""
    head: margins.Plain = "arcface"
    """Form of the margin."""
    scale: float = Field(default=64.0, gt=0, le=Limits.WEIGHT)
    """Factor of the cosines."""
    margin: float = Field(default=0.45, ge=0, le=Limits.WEIGHT)
    """Margin of the head."""
    weighted: bool = True
    """Weigh the share that stays by the teacher's cosine with the centre."""

    def needs(self) -> Signal:
        """The embeddings."""
        return Signal.EMBEDDING

    def reads_labels(self) -> bool:
        """True: each class has a centre."""
        return True

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The centres, and the linear map, where the widths differ."""
        known = 0 if targets is None else int(targets.max()) + 1
        classes = max(1, student.classes, known)
        centres, helpers = Centres(classes, teacher.embedding), embedding_map(student, teacher)
        helpers["centres"] = centres
        return helpers

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The margin loss, at the embedding, after the centres have moved."""
        centres, labels = helpers["centres"], batch.labels
        assert isinstance(centres, Centres)
        with full_precision(student.embedding):
            mine = mapped(precise(student.embedding), helpers)
            theirs = precise(teacher.embedding)
            if centres.training:
                with torch.no_grad():
                    shares = centres.shares(mine, theirs, labels, weighted=self.weighted)
                    centres.move(shares, F.normalize(theirs, dim=1), labels, batch.ids)
            cosine = F.normalize(mine, dim=1) @ F.normalize(centres.rows, dim=1).T.to(mine)
            loss = margins.margin_loss(cosine, labels, self.margin, self.scale, self.head)
            return {"embedding": value_at(self.weight, batch.epoch) * loss}
