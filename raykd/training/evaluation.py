"""Evaluation of a network on test images, beside its teacher.

Shapes: B batch.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from raykd.core.types import Outputs
from raykd.data.loading.loader import Views
from raykd.data.loading.sampler import share
from raykd.methods.base import Method
from raykd.models.staged import Staged
from raykd.tasks import Task
from raykd.tasks.base import NO_ROWS, Embedded
from raykd.tasks.classification import CLASSIFICATION
from raykd.teachers.source import Source
from raykd.training.hosts.base import Host

BATCH = 512


def evaluate(
    network: Staged,
    method: Method,
    helpers: nn.ModuleDict,
    test: Views,
    teacher: Source | None,
    host: Host,
    *,
    autocast: bool = False,
    task: Task = CLASSIFICATION,
    of_teacher: list[Any] | None = None,
) -> dict[str, float]:
    """The task's metrics over the test images, each counted once however many workers share them.

    What needs a `teacher` is left out without one. The headline is NaN where embeddings that rank
    or are compared are not finite. `of_teacher` keeps what follows from the
    teacher's embeddings alone for the next evaluation with the same teacher and images.
    """
    network.eval()
    helpers.eval()  # some have a part in the scores
    task = task.over(len(test.images))
    wanted = method.student_needs() | task.reads()
    sums: Tensor | None = None
    collected: list[list[Tensor]] = []
    rows = share(len(test.images), host.rank, host.world)
    idle = not len(rows)  # more workers than test images: one counts for nothing
    rows = torch.zeros(1, dtype=torch.int64) if idle else rows
    with torch.no_grad():
        for batch in test.runs(rows, test.at_once(BATCH, network.side)):
            with torch.autocast(batch.pixels.device.type, torch.bfloat16, autocast):
                student = network.outputs(batch.pixels, wanted)
            answer = teacher(batch) if teacher is not None else None
            more = task.batch_sums(method, student, answer, batch, helpers)
            more = torch.zeros_like(more) if idle else more
            sums = more if sums is None else sums + more
            if task.collects_from(student, answer):
                collected.append(_collected(task, student, answer, helpers))
    assert sums is not None
    metrics = task.metrics(host.total(sums), taught=teacher is not None)
    if collected:
        count, labels = len(test.images), NO_ROWS
        if test.data.labels != "none":
            labels = test.images.targets.to(host.device)
        parts = [torch.cat(part) for part in zip(*collected, strict=True)]
        images = Embedded(labels, *(gathered(part, count, host) for part in parts))
        if not all_finite(images):
            return metrics | {task.headline: math.nan}
        kept = [] if of_teacher is None else of_teacher
        if len(images.teacher) and not kept:
            kept.append(task.of_teacher(images))
        metrics |= task.collected(images, *kept)
    return metrics


def all_finite(images: Embedded) -> bool:
    """True where a student's embeddings, and what its task makes of them, are finite."""
    return all(bool(rows.isfinite().all()) for rows in (images.student, images.answer))


def gathered(rows: Tensor, count: int, host: Host) -> Tensor:
    """The rows [count, D] of all images, from the share that each worker has (a row at least)."""
    longest = -(-count // host.world)  # all workers gather equally many
    padded = torch.cat([rows, rows[:1].expand(longest - len(rows), -1)])
    parts = host.gather(padded.contiguous()).view(host.world, longest, -1)
    sizes = [len(share(count, rank, host.world)) for rank in range(host.world)]
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _collected(
    task: Task, student: Outputs, teacher: Outputs | None, helpers: nn.ModuleDict
) -> list[Tensor]:
    """Embeddings [B, D], what the task makes of them, and the teacher's if there are, float32."""
    embedding = student.embedding.float()
    rows = [embedding, task.answer(embedding, helpers)]
    if teacher is not None and teacher.has_embedding:
        rows.append(teacher.embedding.float())
    return rows
