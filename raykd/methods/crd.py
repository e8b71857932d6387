"""Contrastive representation distillation: an embedding of the student should tell its teacher's
from those of thousands of other samples, which a memory keeps.

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
    """A linear map to vectors of length 1."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width)

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, D] -> [B, E]."""
        return F.normalize(self.linear(embedding), dim=1)


class Memory(Shared):
    """A vector of each training sample for each network, and the constants Z; buffers all."""

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
        self.scaled = False  # whether both Z were seen to be set: a GPU is asked in few steps
        bound = 1 / math.sqrt(width / 3)
        for name in ("student", "teacher"):
            start = torch.empty(len(targets), width).uniform_(-bound, bound)
            self.register_buffer(name, start)
            self.register_buffer(f"z_{name}", torch.zeros(()))
        self.seed = keyed_random.drawn_seed()
        counts = targets.bincount()
        self.smallest_pool = len(targets) - int(counts.max())  # negatives to choose from
        starts = F.pad(counts.cumsum(0), (1, 0))
        for name, value in (
            ("targets", targets.clone()),
            ("order", targets.argsort(stable=True)),
            ("starts", starts),
        ):
            self.register_buffer(name, value, persistent=False)

    def drawn(self, batch: Batch, negatives: int, *, relaxed: bool) -> Tensor:
        """Row ids int64 [B, 1 + K]: the positive, then negatives of other classes.

        A function of (seed, sample, epoch). No row comes twice, unless a class has fewer than K
        rows that are not its own. `relaxed`: the positive is any row of the sample's class.
        """
        ids = batch.ids
        labels = self.targets[ids]
        start, stop = self.starts[labels], self.starts[labels + 1]
        pool = len(self.targets) - (stop - start)
        if self.smallest_pool >= negatives:
            places = torch.arange(negatives, device=ids.device)
            key = self.seed, ids, batch.epoch, keyed_random.NEGATIVES
            place = keyed_random.shuffled(*key, places, pool, most=len(self.targets))
        else:
            each = ids[:, None] * negatives + torch.arange(negatives, device=ids.device)
            share = keyed_random.uniform(
                self.seed, each, batch.epoch, keyed_random.NEGATIVES
            ).double()
            place = (share * pool[:, None]).long()
        # The rows in the order of their classes, the sample's own class left out.
        place = place + torch.where(place >= start[:, None], (stop - start)[:, None], 0)
        positive = ids
        if relaxed:
            share = keyed_random.uniform(
                self.seed, ids, batch.epoch, keyed_random.POSITIVE
            ).double()
            positive = self.order[start + (share * (stop - start)).long()]
        return torch.cat([positive[:, None], self.order[place]], dim=1)

    def contrast(self, own: Tensor, bank: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        """exp(memory v / T) / Z of the rows [B, 1 + K] for vectors `own` [B, E].

        Z is set once, on the first batch, to N times the mean over all workers.
        """
        # All N rows are multiplied and then 1 + K picked. To gather [B, 1 + K, E] first would take
        # ten times as long for the 50,000 rows of CIFAR, and half a gigabyte for each network.
        # A copy: the memory moves on before the backward pass.
        scores = (own @ bank.clone().T).gather(1, rows).div(self.temperature).exp()
        if not (self.scaled or bool(z)):
            means = self.gather(scores.detach().mean(1))
            if not len(means):
                return scores  # there is no sample at all, and nothing to divide
            z.copy_(means.mean() * len(bank))
        return scores / z

    def remember(self, ids: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Move the memory of the samples of all workers towards their new vectors [B, E]."""
        ids = self.gather(ids)
        for bank, vectors in ((self.student, student), (self.teacher, teacher)):
            new = self.gather(vectors.detach()).to(bank.dtype)
            mixed = self.momentum * bank[ids] + (1 - self.momentum) * new
            bank.index_copy_(0, ids, F.normalize(mixed, dim=1))
        self.scaled = self.scaled or (bool(self.z_student) and bool(self.z_teacher))


def contrastive_loss(scores: Tensor, rows: int) -> Tensor:
    """Noise contrastive estimation of scores [B, 1 + K], positive first, among `rows` samples.

    Equation 18 of the paper, summed over negatives and averaged over the batch; 0 for no sample.
    """
    noise = (scores.shape[1] - 1) / rows
    positive, negative = scores[:, 0], scores[:, 1:]
    log_chances = (positive / (positive + noise + EPSILON)).log()
    # Scores of negatives are far below the noise: log(noise / (score + noise)) in float32 would be
    # off by a thousandth of itself.
    others = ((negative + EPSILON) / noise).log1p().sum(1)
    return (others - log_chances).sum() / max(1, len(scores))


class CRD(Method):
    """weight * (the student's contrast with the teacher's memory + the reverse).

    Tian et al. 2020, arXiv 1910.10699, equations 17 to 19; settings of the official code for
    CIFAR-100. Both networks' linear maps are trained. On ImageNet it uses the same negatives and
    weight, with a width of 512 (ResNet34 -> ResNet18).

    The memory and the constants Z are buffers in the checkpoints. Negatives are drawn by key, so
    they depend on neither the batch nor the worker; all workers update all memories, in the order
    of the workers, after each step, or after each part of it where `scale.accumulate` divides it.
    So the number of workers changes rounding only, batch norm apart. Where the negatives are more
    than the rows of other classes, they are drawn with repetition. Mixed samples are refused: what
    the memory has of a sample would be a mixture with another, and the negatives suit one label.
    """

    title: ClassVar[str] = "Tian et al. 2020, arXiv 1910.10699"
    cost: ClassVar[str] = "B N E, memory 2 N E"

    name: Literal["crd"] = "crd"
    width: int = Field(default=128, ge=1, le=Limits.WIDTH)  # E
    negatives: int = Field(default=16_384, ge=1, le=Limits.WIDTH)  # K, of each sample
    temperature: float = Field(default=0.07, gt=0, le=Limits.TEMPERATURE)
    momentum: float = Field(default=0.5, ge=0, lt=1)  # the memory's
    positive: Literal["exact", "relaxed"] = "exact"  # the sample itself, or any of its class
    weight: Schedule = 0.8

    def needs(self) -> Signal:
        """The embeddings."""
        return Signal.EMBEDDING

    def has_memory(self) -> bool:
        """Yes: a vector of each training sample, for each network."""
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
        """Both contrasts, at the spot "embedding"; then the memory is updated."""
        memory = helpers["memory"]
        assert isinstance(memory, Memory)
        with full_precision(student.embedding):
            mine = helpers["student"](precise(student.embedding))
            theirs = helpers["teacher"](precise(teacher.embedding))
            rows = memory.drawn(batch, self.negatives, relaxed=self.positive == "relaxed")
            of_student = memory.contrast(mine, memory.teacher, memory.z_student, rows)
            of_teacher = memory.contrast(theirs, memory.student, memory.z_teacher, rows)
            size = len(memory.targets)
            loss = contrastive_loss(of_student, size) + contrastive_loss(of_teacher, size)
            memory.remember(batch.ids, mine, theirs)
            return {"embedding": value_at(self.weight, batch.epoch) * loss}
