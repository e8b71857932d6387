"""Probes of a backbone: the embeddings of a labelled set, and what can be told from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raykd.core.types import Signal
from raykd.data.loading.loader import Views
from raykd.data.loading.sampler import share
from raykd.data.recipe import Split
from raykd.models.staged import Staged
from raykd.outputs.reader import OutputsCache
from raykd.tasks import LabelledSet, Task
from raykd.tasks.base import Embedded
from raykd.training.evaluation import BATCH, all_finite, gathered
from raykd.training.hosts.base import Host


@dataclass(frozen=True)
class ProbeSets:
    """A probe with its images."""

    probe: LabelledSet
    train: Views  # images whose labels are known
    test: Views
    names: tuple[str, ...]  # class names
    # The caches of the teacher's embeddings that the task reads.
    teacher: Mapping[Split, OutputsCache] = field(default_factory=dict)
    of_teacher: list[Any] = field(default_factory=list)  # what probes need of those alone


def is_due(sets: ProbeSets, epoch: int, epochs: int) -> bool:
    """True where a probe is to be made after an epoch (from 0) of so many."""
    every = sets.probe.every
    return epoch + 1 == epochs or (every is not None and (epoch + 1) % every == 0)


def probed(
    task: Task,
    network: Staged,
    helpers: nn.ModuleDict,
    sets: ProbeSets,
    host: Host,
    *,
    autocast: bool = False,
) -> dict[str, float]:
    """The task's metrics of the probe's images: equal on all workers. The headline alone, NaN,
    where the student's embeddings are not finite.

    `helpers` are the method's. What follows from the teacher's embeddings alone is kept for the
    next probe.
    """
    network.eval()
    helpers.eval()

    def embedded(part: Split, views: Views) -> Embedded:
        images = Embedded(views.images.targets.to(host.device))
        if part in task.student_embeds():
            mirrored = sets.probe.mirrored()
            rows = embeddings(network, views, host, mirrored=mirrored, autocast=autocast)
            with torch.no_grad():
                images = images._replace(student=rows, answer=task.answer(rows, helpers))
        if part in sets.teacher:
            images = images._replace(teacher=_stored(sets.teacher[part]))
        return images

    both = embedded("train", sets.train), embedded("test", sets.test)
    if not all(map(all_finite, both)):
        return {task.headline: math.nan}
    if sets.teacher and not sets.of_teacher:
        sets.of_teacher.append(task.judged_teacher(*both, sets.names))
    return task.judged(*both, sets.names, *sets.of_teacher)


def _stored(cache: OutputsCache) -> Tensor:
    """All embeddings of a cache of one view, float32 [N, E]."""
    return torch.cat([cache.take(ids, 0, Signal.EMBEDDING).embedding for ids in cache.ids()])


def embeddings(
    network: Staged, views: Views, host: Host, *, mirrored: bool = False, autocast: bool = False
) -> Tensor:
    """The embeddings [N, D] of all images, float32; every worker computes a share.

    `mirrored`: each is the sum of the image's and its mirror image's. `autocast`: the network runs
    in bfloat16.
    """

    def embedded(pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, torch.bfloat16, autocast):
            return network.outputs(pixels, Signal.EMBEDDING).embedding.float()

    count = len(views.images)
    rows = share(count, host.rank, host.world)
    rows = rows if len(rows) else torch.zeros(1, dtype=torch.int64)  # more workers than images
    with torch.no_grad():
        parts = [
            embedded(batch.pixels) + embedded(batch.pixels.flip(3))
            if mirrored
            else embedded(batch.pixels)
            for batch in views.runs(rows, views.at_once(BATCH, network.side))
        ]
    return gathered(torch.cat(parts), count, host)
