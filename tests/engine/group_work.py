"""What the workers of tests/engine/test_host.py do; new processes import it by name."""

from pathlib import Path

import torch

from raykd.engine.fit import train_student
from raykd.engine.host import GroupHost
from raykd.engine.journal import Journal
from raykd.recipes import StudentRun
from raykd.store import Store, write_json
from tests.small import CPU


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
    journal = Journal(store.path(run))
    if not stop:
        train_student(store, run, GroupHost(journal, CPU))
        return
    host = StoppingHost(journal, CPU)
    host.left = stop
    try:
        train_student(store, run, host)
    except Stop:
        return


def gather(rank: int, folder: str) -> None:
    """Write down what a host makes of a tensor and of a module's buffers."""
    seen: list[int] = []
    host = GroupHost(Journal(Path(folder)), CPU, lambda metrics: seen.append(metrics["epoch"]))
    norm = torch.nn.BatchNorm2d(2)
    norm.running_mean.fill_(float(rank))
    host.agree(norm)
    total = host.total(torch.tensor([1.0, float(rank)]))
    host.restart([])
    for epoch in range(3):
        host.report({"epoch": epoch}, dict, last=epoch == 2)
    value = {"mean": norm.running_mean.tolist(), "total": total.tolist(), "passed_on": seen}
    write_json(Path(folder) / f"rank-{rank}.json", value)
