"""Probes of a backbone: the embeddings of a labelled set, and what can be told from them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from raykd.core.types import Signal
from raykd.data.loading.loader import Views
from raykd.data.loading.sampler import share
from raykd.models.staged import Staged
from raykd.tasks import LabelledSet, Task
from raykd.training.evaluation import BATCH, gathered
from raykd.training.hosts.base import Host


@dataclass(frozen=True)
class ProbeSets:
    """A probe with its images."""

    probe: LabelledSet
    train: Views  # images whose labels are known
    test: Views


def is_due(sets: ProbeSets, epoch: int, epochs: int) -> bool:
    """True where a probe is to be made after an epoch (from 0) of so many."""
    every = sets.probe.every
    return epoch + 1 == epochs or (every is not None and (epoch + 1) % every == 0)


def probed(
    task: Task, network: Staged, sets: ProbeSets, host: Host, *, autocast: bool = False
) -> dict[str, float]:
    """The task's metrics of the probe's images: equal on all workers."""
    network.eval()
    options = {"mirrored": sets.probe.mirrored(), "autocast": autocast}
    train, test = (embeddings(network, views, host, **options) for views in (sets.train, sets.test))
    known, queries = (views.images.targets.to(host.device) for views in (sets.train, sets.test))
    return task.judged(train, known, test, queries, sets.probe.data.resolved().classes)


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
