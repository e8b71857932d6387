"""Work of the processes of test_calibrations.py; they import it by name."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from raykd.core.counters import METER
from raykd.core.errors import RaykdError
from raykd.core.types import Outputs
from raykd.data.loading.sampler import epoch_order
from raykd.methods.dense_distillation import DenseDistillation
from raykd.recipes import StudentRun
from raykd.storage.store import Store
from raykd.training import initial_state, inputs
from raykd.training.calibrations import Calibrations, Sample
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import Host, LocalHost
from raykd.training.hosts.group import GroupHost
from tests.small import CPU


class Refusing(DenseDistillation):
    """A method that cannot be calibrated."""

    def calibrate(self, helpers: nn.ModuleDict, teacher: Iterable[Outputs]) -> None:
        """Raise an error."""
        raise RaykdError("no calibration of 0.25")

    def calibration_reads(self) -> str:
        """A text that no other method has, so that no calibration is found."""
        return "nothing"


def work(rank: int, root: str, folder: str, runs: list[StudentRun]) -> None:
    """Each process prepares a student of its own at once; then both have one."""
    store, target = Store(root), Path(folder)
    checkpoints = Checkpoints(target / f"{rank}")
    dist.barrier()
    _calibrated(store, runs[rank], LocalHost(checkpoints, CPU), target / f"several-{rank}.pt")
    dist.barrier()
    if rank == 0:
        for path in store.root.glob("caches/*/calibration-*"):
            path.unlink()
    dist.barrier()
    host = GroupHost(checkpoints, CPU)
    _calibrated(store, runs[0], host, target / f"together-{rank}.pt")
    refused = runs[0].model_copy(update={"method": Refusing(standardise="phi_s")})
    with pytest.raises(RaykdError, match=r"^no calibration of 0\.25$"):
        _calibrated(store, refused, host, target)


def _calibrated(store: Store, run: StudentRun, host: Host, target: Path) -> None:
    """Calibrate a student, and write its buffers and the bytes that it read of caches."""
    train, _ = inputs.views(store, run, host)
    learner = initial_state.learner(store, run, host, train.images.targets)
    teacher = inputs.teachers(store, run, CPU)(0)
    assert teacher is not None
    before = METER.cache_bytes
    rows = epoch_order(run.data.seed, 0, len(train.images)).sort().values
    Calibrations(store, host).set(run.method, learner.helpers, Sample(teacher, train, rows, 0))
    outcome = {
        "bytes": METER.cache_bytes - before,
        "buffers": dict(learner.helpers.named_buffers()),
    }
    torch.save(outcome, target)
