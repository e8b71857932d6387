"""Evaluation of a network on test images, beside its teacher.

Shapes: B batch.
"""

import torch
from torch import nn

from raykd.data.loading.loader import Views
from raykd.data.loading.sampler import share
from raykd.methods.base import Method
from raykd.models.staged import Staged
from raykd.tasks import Task
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
) -> dict[str, float]:
    """The task's metrics over the test images, each counted once however many workers share them.

    What needs a `teacher` is left out without one.
    """
    network.eval()
    helpers.eval()  # some have a part in the scores
    wanted = method.student_needs() | task.reads()
    sums: torch.Tensor | None = None
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
    assert sums is not None
    return task.metrics(host.total(sums), taught=teacher is not None)
