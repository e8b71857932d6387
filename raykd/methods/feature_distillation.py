"""Feature distillation: the student's embedding, projected, against the teacher's; no labels.

Shapes: B batch, D student's embedding width, E teacher's, Q rows of the queue or table.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Outputs, Shapes
from raykd.methods.base import Schedule, SpotMethod, precise
from raykd.methods.dense_distillation import linear_map
from raykd.methods.directions import Dispersion, TangentSphere
from raykd.methods.helper_kinds import Calibrated, Shared
from raykd.methods.panel_distillation import mixed_distance

# Training images, at most -> rows of the queue; the last one for more. LightlyTrain's table.
_SIZES = {50: 16, 100: 32, 250: 64, 500: 128, 1_000: 256, 2_000: 512, 4_000: 1024, 10_000: 2048}
_SIZES |= {20_000: 4096}
_LARGEST = 8192
_TABLE = 16_384  # rows of a table at most


class Queue(Shared):
    """The teacher's last Q embeddings, normalised; rows that were not filled yet are zeros."""

    rows: Tensor
    position: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def push(self, rows: Tensor) -> None:
        """Replace the oldest rows by those [B, E] of all workers."""
        size, new = len(self.rows), self.gather(rows)[-len(self.rows) :]
        index = (self.position + torch.arange(len(new), device=new.device)) % size
        self.rows.index_copy_(0, index, new.to(self.rows))
        self.position.copy_((self.position + len(new)) % size)


class Table(Calibrated):
    """The teacher's embeddings of Q training images, normalised; they stay."""

    rows: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("known", torch.tensor(False))


class FeatureDistillation(SpotMethod):
    """weight * a distance between P student and teacher, on embeddings; P is a linear map.

    cosine     mean over samples of 1 - cos(P s, t)
    l2         mean over samples and channels of (P s - t)**2
    smooth_l1  mean over samples and channels of torch's smooth L1 (Girshick 2015, arXiv 1504.08083)
    balanced   `share` * cosine + (1 - `share`) * smooth_l1: a half of each in UNIC (Sariyildiz et
               al. 2024, arXiv 2408.05088)
    angle      mean over samples of angle(P s, t)**2 over the mean squared angle of the teacher's
               embeddings with their mean: C-RADIOv4 (arXiv 2601.17237, equation 7)
    tangent    mean squared difference of the tangents at the teacher's mean direction, after PHI-S:
               `tangent_sphere` of NVIDIA's trainer of RADIO
    queue      mean over samples of KL(softmax(t Q' / T) || softmax(P s Q' / T)), all normalised:
               version 1 of LightlyTrain's distillation, T = 0.07. Q are the teacher's last
               embeddings (`fifo`), those of the batch among them, or a fixed set of up to 16,384
               training images (`table`, ours). Several workers fill one queue (ours; there, each
               has its own).

    The weight, that of labels beside it and the choice of cosine as the default are ours.
    """

    title: ClassVar[str] = "LightlyTrain's distillation v1; UNIC; C-RADIOv4, arXiv 2601.17237"
    cost: ClassVar[str] = "B D E, queue: B Q E"
    matches: ClassVar[bool] = True

    name: Literal["feature_distillation"] = "feature_distillation"
    distance: Literal["cosine", "l2", "smooth_l1", "balanced", "angle", "tangent", "queue"] = (
        "cosine"
    )
    """Distance between the student's mapped embedding and the teacher's."""
    weight: Schedule = 1.0
    share: float = Field(default=0.5, ge=0, le=1)
    """Share of 1 - cosine in the distance `balanced`; the rest is smooth L1."""
    queue: Literal["fifo", "table"] = "fifo"
    """Rows to compare with: the teacher's last embeddings, or a fixed set; for `queue`."""
    size: int | None = Field(default=None, ge=2, le=Limits.WIDTH)
    """Rows of the queue; null: by the number of training images, at most 8,192 (table: 16,384)."""
    temperature: float = Field(default=0.07, gt=0, le=Limits.TEMPERATURE)
    """Temperature T that divides the cosines, with distance `queue`."""

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The projection, and the queue, the table or the statistics of directions."""
        width = teacher.embedding
        helpers = nn.ModuleDict({"projection": linear_map(student.embedding, width)})
        if self.distance in ("angle", "tangent"):
            helpers["directions"] = (
                Dispersion() if self.distance == "angle" else TangentSphere(width)
            )
        if self.distance == "queue":
            images = _LARGEST if targets is None else len(targets)
            fifo = self.queue == "fifo"
            size = self.size or (queue_size(images) if fifo else min(images, _TABLE))
            helpers["queue"] = (Queue if fifo else Table)(size, teacher.embedding)
        return helpers

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Fill the table, or fit the statistics of directions.

        A table begins anew with its first row where there are too few.
        """
        if "directions" in helpers:
            directions = helpers["directions"]
            assert isinstance(directions, Dispersion | TangentSphere)
            directions.calibrate(precise(outputs.embedding) for outputs in teacher)
            return
        table = helpers["queue"]
        assert isinstance(table, Table)
        rows, filled = table.rows, 0
        for outputs in teacher:
            new = F.normalize(precise(outputs.embedding), dim=1)[: len(rows) - filled]
            rows[filled : filled + len(new)] = new
            filled += len(new)
        rows.copy_(rows[torch.arange(len(rows), device=rows.device) % filled])
        table.known.fill_(True)

    def calibration_reads(self) -> str | None:
        """The distance; None for a table, whose rows the cache has."""
        return None if self.distance == "queue" else self.distance

    def spot_loss(self, student: Tensor, teacher: Tensor, helpers: nn.ModuleDict) -> Tensor:
        """The distance of the projected embeddings."""
        student = helpers["projection"](student)
        if self.distance == "cosine":
            return (1 - F.cosine_similarity(student, teacher, dim=1)).mean()
        if self.distance == "l2":
            return F.mse_loss(student, teacher)
        if self.distance == "smooth_l1":
            return F.smooth_l1_loss(student, teacher)
        if self.distance == "balanced":
            return mixed_distance(student[..., None], teacher[..., None], self.share).mean()
        if "directions" in helpers:
            return helpers["directions"](student, teacher).mean()
        teacher = F.normalize(teacher, dim=1)
        queue = helpers["queue"]
        assert isinstance(queue, Queue | Table)
        if isinstance(queue, Queue) and queue.training:
            queue.push(teacher.detach())
        rows = queue.rows.to(teacher)
        log_student = (F.normalize(student, dim=1) @ rows.T / self.temperature).log_softmax(1)
        log_teacher = (teacher @ rows.T / self.temperature).log_softmax(1)
        return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def queue_size(images: int) -> int:
    """Rows of a queue for a number of training images."""
    return next((size for most, size in _SIZES.items() if images <= most), _LARGEST)
