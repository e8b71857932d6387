"""Work of processes that share a run in several ways; they import it by name."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from raykd.config.scale import Scale
from raykd.core.errors import ConfigError
from raykd.recipes import StudentRun, Training
from raykd.storage.store import Store
from raykd.training import initial_state, inputs, runs
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import Host, LocalHost
from raykd.training.hosts.fsdp import group_host
from raykd.training.loop import Metrics, Sources, distil
from raykd.training.runs import train
from tests.small import CPU

Work = tuple[str, Scale, Training]  # a store, and a run that is trained in it


class Stop(Exception):
    """The worker has gone away."""


def each(rank: int, calls: list[tuple[Any, ...]]) -> None:
    """Call functions with their arguments, one after the other: a group takes long to start."""
    for function, *arguments in calls:
        function(rank, *arguments)
        dist.barrier()


def train_each(rank: int, work: list[Work]) -> None:
    """Train runs, one after the other."""
    for root, scale, run in work:
        store = Store(root)
        runs.train(store, run, group_host(Checkpoints(store.path(run)), CPU, scale=scale))
        dist.barrier()  # rank 0 finishes what the next run may begin from


def begin(rank: int, root: str, scale: Scale, run: StudentRun, epochs: int) -> None:
    """Train some epochs of a student, and go away once their checkpoint is written."""
    store = Store(root)
    host = group_host(Checkpoints(store.path(run)), CPU, scale=scale)
    report, left = host.report, [epochs]

    def reported(metrics, state, *, last):
        report(metrics, state, last=last)
        left[0] -= 1
        if not left[0]:
            raise Stop

    host.report = reported
    try:
        train(store, run, host)
    except Stop:
        return


def distil_plainly(
    store: Store, run: StudentRun, host: Host
) -> tuple[list[Metrics], dict[str, torch.Tensor]]:
    """The epochs of a student without batch norms, and the weights of all that was trained.

    What it learns in a step is a mean over the samples, however they are shared.
    """
    train, _ = inputs.views(store, run, host)
    learner = initial_state.learner(store, run, host, train.images.targets)
    for part in (*learner.modules(), *learner.student.stages.values()):
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(part, name, nn.Identity())
    sources = Sources(inputs.teachers(store, run, CPU), train)
    history = distil(run, learner, sources, host).history
    return history, host.weights.whole(learner).state_dict()


def plainly_alone(store: Store, run: StudentRun, folder: Path, scale: Scale):
    """Train in this process, with the checkpoint in a folder of its own."""
    folder.mkdir()
    return distil_plainly(store, run, LocalHost(Checkpoints(folder), CPU, scale=scale))


def plainly_together(rank: int, root: str, folder: str, work: list[tuple[Scale, StudentRun]]):
    """Train several runs in a group; rank 0 writes its state at the end."""
    for number, (scale, run) in enumerate(work):
        place = Path(folder) / str(number)
        place.mkdir(exist_ok=True)
        found = distil_plainly(Store(root), run, group_host(Checkpoints(place), CPU, scale=scale))
        if rank == 0:
            torch.save(found, place / "found.pt")


def refused(rank: int, root: str, folder: str, scale: Scale, run: StudentRun) -> None:
    """Write down the error of a run that cannot be trained so."""
    try:
        train_each(rank, [(root, scale, run)])
    except ConfigError as error:
        (Path(folder) / f"error-{rank}.txt").write_text(str(error))
