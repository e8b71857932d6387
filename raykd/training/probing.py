"""Probes of a backbone: the embeddings of a labelled set, and what can be told from them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from raykd.core.types import Signal
from raykd.data.loading.loader import Views
from raykd.data.loading.sampler import share
from raykd.models.staged import Staged
from raykd.tasks import Probe
from raykd.tasks.probes import knn_accuracy, linear_accuracy
from raykd.training.evaluation import BATCH
from raykd.training.hosts.base import Host


@dataclass(frozen=True)
class ProbeSets:
    """A probe with its images."""

    probe: Probe
    train: Views  # whose labels are known
    test: Views


def is_due(sets: ProbeSets, epoch: int, epochs: int) -> bool:
    """True where a probe is to be made after an epoch (from 0) of so many."""
    every = sets.probe.every
    return epoch + 1 == epochs or (every is not None and (epoch + 1) % every == 0)


def probed(network: Staged, sets: ProbeSets, host: Host) -> dict[str, float]:
    """Accuracies in percent, by kind of probe, as metrics: equal on all workers."""
    network.eval()
    probe, classes = sets.probe, sets.probe.data.resolved().classes
    train, test = (embeddings(network, views, host) for views in (sets.train, sets.test))
    known, asked = (views.images.targets.to(host.device) for views in (sets.train, sets.test))
    metrics: dict[str, float] = {}
    for kind in probe.kind:
        if kind == "knn":
            accuracy = knn_accuracy(
                train, known, test, asked, classes, k=probe.k, temperature=probe.temperature
            )
        else:
            accuracy = linear_accuracy(train, known, test, asked, classes)
        metrics |= {f"{kind}_top1": accuracy.top1, f"{kind}_top5": accuracy.top5}
    return metrics


def embeddings(network: Staged, views: Views, host: Host) -> Tensor:
    """The embeddings [N, D] of all images, float32; every worker computes a share."""
    count = len(views.images)
    rows = share(count, host.rank, host.world)
    longest = -(-count // host.world)
    rows = torch.cat([rows, rows.new_zeros(longest - len(rows))])  # all workers gather equally many
    with torch.no_grad():
        parts = [
            network.outputs(batch.pixels, Signal.EMBEDDING).embedding.float()
            for batch in views.runs(rows, views.at_once(BATCH, network.side))
        ]
    gathered = host.gather(torch.cat(parts)).view(host.world, longest, -1)
    sizes = [len(share(count, rank, host.world)) for rank in range(host.world)]
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])
