"""Work of the processes of hosts/test_base.py; they import it by name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import ModuleDict

from raykd.config.scale import Scale
from raykd.core.shutdown import Notice
from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.crd import CRD
from raykd.methods.pkt import PKT
from raykd.methods.sakd import SAKD
from raykd.recipes import StudentRun, Training
from raykd.storage.store import Store, write_json
from raykd.training import runs as fit
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.group import GroupHost
from tests.small import ALL, CPU, batch, helpers_of, outputs_of, pair


class Stop(Exception):
    """The worker has gone away."""


class StoppingHost(GroupHost):
    """A worker that dies after some epochs."""

    left = 1

    def report(self, metrics, state, *, last):
        super().report(metrics, state, last=last)
        self.left -= 1
        if self.left == 0:
            raise Stop


def train(rank: int, root: str, run: StudentRun, stop: int) -> None:
    """Train a student, or only `stop` epochs of it where that is not 0."""
    store = Store(root)
    checkpoints = Checkpoints(store.path(run))
    if not stop:
        fit.train(store, run, GroupHost(checkpoints, CPU))
        return
    host = StoppingHost(checkpoints, CPU)
    host.left = stop
    try:
        fit.train(store, run, host)
    except Stop:
        return


class LeavingHost(GroupHost):
    """A worker that dies between two steps of an epoch, once a checkpoint is written."""

    left = 1

    def between(self, state):
        self.left -= 1
        if self.left == 0:
            kept = state()
            if self.rank == 0:
                self.checkpoints.keep(kept)
            raise Stop


def train_within(rank: int, root: str, run: StudentRun, steps: int) -> None:
    """Train a student, by any number of workers, and leave after so many steps if not 0."""
    store = Store(root)
    host = LeavingHost(Checkpoints(store.path(run)), CPU, scale=Scale(workers=(1, 4)))
    host.left = steps
    try:
        fit.train(store, run, host)
    except Stop:
        return


class Told(Notice):
    """A machine that is about to go."""

    def given(self) -> bool:
        return True


def train_told(rank: int, root: str, folder: str, run: StudentRun) -> None:
    """Train a student while the last worker's machine is about to go, and note the checkpoints."""
    store, kept = Store(root), []

    class Noting(Checkpoints):
        def keep(self, state):
            kept.append((state["epoch"], (state["within"] or {}).get("steps")))
            super().keep(state)

    checkpoints = Noting(store.path(run), 1e9, store)
    notice = Told() if rank == dist.get_world_size() - 1 else Notice()
    fit.train(store, run, GroupHost(checkpoints, CPU, notice=notice))
    write_json(Path(folder) / f"kept-{rank}.json", kept)


def train_each(rank: int, root: str, runs: list[Training]) -> None:
    """Train preludes and students, one after the other."""
    store = Store(root)
    for run in runs:
        fit.train(store, run, GroupHost(Checkpoints(store.path(run)), CPU))
        dist.barrier()  # rank 0 finishes what the next run may begin from


def gather(rank: int, folder: str) -> None:
    """Write down what a host makes of a tensor and of a module's buffers."""
    host = GroupHost(Checkpoints(Path(folder)), CPU)
    norm = torch.nn.BatchNorm2d(2)
    norm.running_mean.fill_(float(rank))
    host.agree(norm)
    total = host.total(torch.tensor([1.0, float(rank)]))
    host.restart([])
    for epoch in range(3):
        host.report({"epoch": epoch}, dict, last=epoch == 2)
    value = {"mean": norm.running_mean.tolist(), "total": total.tolist()}
    write_json(Path(folder) / f"rank-{rank}.json", value)


def gather_rows(rank: int, folder: str) -> None:
    """Write down what a host makes of rows of which each worker has another number."""
    host = GroupHost(Checkpoints(Path(folder)), CPU)
    rows = torch.arange(2 * (rank + 1)).view(rank + 1, 2) + 10 * rank
    write_json(Path(folder) / f"rows-{rank}.json", host.gather(rows).tolist())


def contrast(
    gather: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor]
) -> tuple[list[float], CRD, ModuleDict]:
    """Three steps of contrastive distillation on the rows of each batch that `ours` takes."""
    method, shapes = CRD(negatives=12, width=8), Shapes(4, 6, {})
    torch.manual_seed(0)
    helpers = method.helpers(shapes, shapes, torch.arange(40) % 4)
    helpers["memory"].gather = gather
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(3):
        ids = torch.randperm(40, generator=generator)[:16]
        mine, theirs = torch.randn(2, 16, 6, generator=generator)
        nothing, rows = torch.empty(0), ours(ids)
        batch = Batch(nothing, nothing, rows, view=0, epoch=0)
        student, teacher = (Outputs(nothing, embedding=ours(x)) for x in (mine, theirs))
        losses.append(method.losses(student, teacher, batch, helpers)["embedding"].item())
    return losses, method, helpers


def contrast_together(rank: int, folder: str) -> None:
    """Write down the memory and the losses of one of two workers."""
    host = GroupHost(Checkpoints(Path(folder)), CPU)
    losses, _, helpers = contrast(host.gather, lambda rows: rows.view(2, 8, *rows.shape[1:])[rank])
    means = (host.total(torch.tensor(losses)) / 2).tolist()
    torch.save((means, helpers.state_dict()), Path(folder) / f"memory-{rank}.pt")


def contrast_alone(rank: int, folder: str) -> None:
    """The same, where one worker has all rows and the other none."""
    host = GroupHost(Checkpoints(Path(folder)), CPU)
    losses, _, helpers = contrast(host.gather, lambda rows: rows if rank else rows[:0])
    torch.save((losses, helpers.state_dict()), Path(folder) / f"memory-{rank}.pt")


def route(
    gather: Callable[[Tensor], Tensor], ours: Callable[[Tensor], Tensor]
) -> tuple[float, list[Tensor], Tensor]:
    """The routing loss of a step, its gradients, and what was counted; without batch norms."""
    student, teacher = pair()
    student.eval()
    method, sample = SAKD(base=PKT(), gamma=3.0), batch(16)
    helpers = helpers_of(method, student, teacher)
    helpers["routing"].gather = gather
    share = ours(torch.arange(16))
    sample = replace(sample.rows(share), pixels=sample.pixels[share])
    mine, theirs = (outputs_of(network, sample, ALL) for network in (student, teacher))
    loss = method.losses(mine, theirs, sample, helpers)["route"]
    parameters = [*helpers["routing"].parameters()]
    gradients = torch.autograd.grad(loss, parameters)
    return loss.item(), [*gradients], helpers["selection"].counts


def route_together(rank: int, folder: str) -> None:
    """Write down what two workers make of it, averaged, and what they counted together."""
    host = GroupHost(Checkpoints(Path(folder)), CPU)
    loss, gradients, counts = route(host.gather, lambda rows: rows.view(2, 8)[rank])
    mean = (host.total(torch.tensor(loss)) / 2).item()
    gradients = [host.total(gradient) / 2 for gradient in gradients]
    torch.save((mean, gradients, host.total(counts)), Path(folder) / f"route-{rank}.pt")


def compare(rank: int, folder: str) -> None:
    """All that workers write down of their helpers."""
    for name, work in (
        ("rows", gather_rows),
        ("together", contrast_together),
        ("alone", contrast_alone),
        ("route", route_together),
    ):
        place = Path(folder) / name
        place.mkdir(exist_ok=True)
        work(rank, str(place))
