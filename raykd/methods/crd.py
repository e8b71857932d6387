"""Contrastive representation distillation (CRD) with a memory bank.

Shapes: B batch, N training rows, D embedding width, E width of the memory, K negatives.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core import keyed_random
from raykd.core.errors import ConfigError
from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at
from raykd.methods.helper_kinds import Shared

EPSILON = 1e-7  # from the official code


class Projection(nn.Module):
    """Linear map, then L2 normalisation."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width)

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, D] -> [B, E]."""
        return F.normalize(self.linear(embedding), dim=1)


class Memory(Shared):
    """Memory banks of both networks, one row per training sample, and the constants Z; buffers."""

    student: Tensor
    teacher: Tensor
    z_student: Tensor
    z_teacher: Tensor
    order: Tensor
    targets: Tensor
    starts: Tensor

    def __init__(self, targets: Tensor, width: int, temperature: float, momentum: float) -> None:
        """`targets` (int64 [N]) are the labels of the rows."""
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.scaled = False  # True once both Z are set, so that a GPU is not asked at each step
        bound = 1 / math.sqrt(width / 3)
        for name in ("student", "teacher"):
            start = torch.empty(len(targets), width).uniform_(-bound, bound)
            self.register_buffer(name, start)
            self.register_buffer(f"z_{name}", torch.zeros(()))
        self.seed = keyed_random.drawn_seed()
        counts = targets.bincount()
        self.smallest_pool = len(targets) - int(counts.max())  # fewest candidates for negatives
        starts = F.pad(counts.cumsum(0), (1, 0))
        for name, value in (
            ("targets", targets.clone()),
            ("order", targets.argsort(stable=True)),
            ("starts", starts),
        ):
            self.register_buffer(name, value, persistent=False)

    def sample_rows(self, batch: Batch, negatives: int, *, relaxed: bool) -> Tensor:
        """Row ids int64 [B, 1 + K]: the positive, then negatives of other classes.

        A function of (seed, sample, epoch), without repetition unless a class has fewer than K
        candidates. `relaxed`: the positive is any row of the sample's class.
        """
        ids = batch.ids
        labels = self.targets[ids]
        start, stop = self.starts[labels], self.starts[labels + 1]
        pool = len(self.targets) - (stop - start)
        if self.smallest_pool >= negatives:
            numbers = torch.arange(negatives, device=ids.device)
            key = self.seed, ids, batch.epoch, keyed_random.NEGATIVES
            index = keyed_random.shuffled(*key, numbers, pool, most=len(self.targets))
        else:
            counter = ids[:, None] * negatives + torch.arange(negatives, device=ids.device)
            key = self.seed, counter, batch.epoch, keyed_random.NEGATIVES
            index = (keyed_random.uniform(*key).double() * pool[:, None]).long()
        # Indices into the rows ordered by class, skipping the sample's own class.
        index = index + torch.where(index >= start[:, None], (stop - start)[:, None], 0)
        positive = ids
        if relaxed:
            key = self.seed, ids, batch.epoch, keyed_random.POSITIVE
            offset = (keyed_random.uniform(*key).double() * (stop - start)).long()
            positive = self.order[start + offset]
        return torch.cat([positive[:, None], self.order[index]], dim=1)

    def contrast(self, vectors: Tensor, bank: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        """exp(bank[rows] v / T) / Z, [B, 1 + K], for the vectors v [B, E] and `rows` [B, 1 + K].

        Z is set once, on the first batch, to N times the mean over all workers.
        """
        # Multiplying all N rows and gathering 1 + K scores takes a tenth of the time of gathering
        # [B, 1 + K, E] first, for the 50,000 rows of CIFAR, and saves half a gigabyte per network.
        # A copy of the bank, because it is updated before the backward pass.
        scores = (vectors @ bank.clone().T).gather(1, rows).div(self.temperature).exp()
        if not (self.scaled or bool(z)):
            means = self.gather(scores.detach().mean(1))
            if not len(means):
                return scores  # no sample on any worker
            z.copy_(means.mean() * len(bank))
        return scores / z

    def update(self, ids: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Momentum update of both banks with the vectors [B, E] of the samples of all workers."""
        ids = self.gather(ids)
        for bank, vectors in ((self.student, student), (self.teacher, teacher)):
            new = self.gather(vectors.detach()).to(bank.dtype)
            mixed = self.momentum * bank[ids] + (1 - self.momentum) * new
            bank.index_copy_(0, ids, F.normalize(mixed, dim=1))
        self.scaled = self.scaled or (bool(self.z_student) and bool(self.z_teacher))


def contrastive_loss(scores: Tensor, rows: int) -> Tensor:
    """NCE loss of scores [B, 1 + K], the positive first, with N = `rows` training rows.

    Equation 18 of the paper, summed over negatives, averaged over the batch; 0 for an empty batch.
    """
    noise = (scores.shape[1] - 1) / rows
    positive, negative = scores[:, 0], scores[:, 1:]
    log_positive = (positive / (positive + noise + EPSILON)).log()
    # Scores of negatives are far below the noise: in float32, log(noise / (score + noise)) would
    # have a relative error of 1e-3.
    minus_log_negative = ((negative + EPSILON) / noise).log1p().sum(1)
    return (minus_log_negative - log_positive).sum() / max(1, len(scores))


class CRD(Method):
    """weight * (NCE of the student against the teacher's memory + the reverse).

    Tian et al. 2020, arXiv 1910.10699, equations 17 to 19; settings of the official code for
    CIFAR-100. The linear maps of both networks are trained. On ImageNet the code uses the same
    negatives and weight, with a width of 512 (ResNet34 -> ResNet18).

    The memory and the constants Z are buffers in the checkpoints. Negatives are drawn by key, so
    they depend on neither the batch nor the worker; all workers update all memories, in the order
    of the workers, after each step, or after each part of it with `scale.accumulate`. The number of
    workers therefore changes rounding only, apart from batch norm. More negatives than there are
    rows of other classes are drawn with repetition. Mixed samples are refused: the memory would
    hold mixtures, and the negatives suit only one label.
    """

    title: ClassVar[str] = "Tian et al. 2020, arXiv 1910.10699"
    cost: ClassVar[str] = "B N E, memory 2 N E"

    name: Literal["crd"] = "crd"
    width: int = Field(default=128, ge=1, le=Limits.WIDTH)
    """Width of the embeddings in the memory, and outputs of the trained linear maps."""
    negatives: int = Field(default=16_384, ge=1, le=Limits.WIDTH)
    """Negatives N of each sample, drawn from the memory."""
    temperature: float = Field(default=0.07, gt=0, le=Limits.TEMPERATURE)
    """Temperature tau that divides the inner products."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Share of a memory's row that an update keeps."""
    positive: Literal["exact", "relaxed"] = "exact"
    """Positive of a sample: itself (exact), or any sample of its class (relaxed)."""
    weight: Schedule = 0.8
    """Factor of both contrastive terms: a number, [[first epoch, value], ...], or a ramp."""

    def needs(self) -> Signal:
        """The embeddings."""
        return Signal.EMBEDDING

    def reads_labels(self) -> bool:
        """True: negatives are of other classes."""
        return True

    def has_memory(self) -> bool:
        """True: the memory has a row per training sample and network."""
        return True

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The linear maps and the memory."""
        if targets is None:
            raise ConfigError("method 'crd' remembers every training row; give it their labels")
        if len(targets.unique()) < 2:
            raise ConfigError("method 'crd' contrasts classes, and the training rows are of one")
        return nn.ModuleDict(
            {
                "student": Projection(student.embedding, self.width),
                "teacher": Projection(teacher.embedding, self.width),
                "memory": Memory(targets, self.width, self.temperature, self.momentum),
            }
        )

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """Both NCE losses, at the spot "embedding"; then the memory is updated."""
        memory = helpers["memory"]
        assert isinstance(memory, Memory)
        with full_precision(student.embedding):
            vectors_s = helpers["student"](precise(student.embedding))
            vectors_t = helpers["teacher"](precise(teacher.embedding))
            rows = memory.sample_rows(batch, self.negatives, relaxed=self.positive == "relaxed")
            scores_s = memory.contrast(vectors_s, memory.teacher, memory.z_student, rows)
            scores_t = memory.contrast(vectors_t, memory.student, memory.z_teacher, rows)
            size = len(memory.targets)
            loss = contrastive_loss(scores_s, size) + contrastive_loss(scores_t, size)
            memory.update(batch.ids, vectors_s, vectors_t)
            return {"embedding": value_at(self.weight, batch.epoch) * loss}
