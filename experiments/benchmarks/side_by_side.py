"""One worker of Ray Train and a local twin, at the same time and on the same neighbours.

Each is charged all the CPU time of its process from the end of one epoch to the end of the next,
whatever that was spent on.
"""

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from raykd.config.scale import Scale
from raykd.recipes import StudentRun
from raykd.storage.store import Store
from raykd.tracking.jsonl import METRICS
from raykd.training.memory import keep_freed_memory
from raykd.training.runs import local_host, train

NEVER = 1e6  # seconds between checkpoints


@dataclass(frozen=True)
class Beside:
    """CPU seconds of each epoch of both, and the wall seconds of Ray's whole run."""

    ray: list[float]
    local: list[float]
    seconds: float


def beside(store: Store, twin: Store, run: StudentRun, say: Callable[[str], None]) -> Beside:
    """Train `run` with one worker of Ray Train in `store`, and in a process of its own in `twin`.

    The two begin together: the twin waits for the end of Ray's first epoch.
    """
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    process = context.Process(target=_local, args=(str(twin.root), run, ready, go), daemon=True)
    process.start()
    ready.wait()
    ray_clock = Clock(store.path(run), _ray_worker, go.set)
    local_clock = Clock(twin.path(run), lambda: process.pid or 0)
    seconds = _fit(store, run, say)
    go.set()  # also where Ray never got as far as the first epoch
    process.join()
    ray, local = ray_clock.stop(), local_clock.stop()
    count = min(len(ray), len(local))
    return Beside(ray[:count], local[:count], seconds)


def _fit(store: Store, run: StudentRun, say: Callable[[str], None]) -> float:
    """Train a student with one worker of Ray Train, in a cluster of our own; wall seconds."""
    from raykd.launch.cluster import connected  # takes seconds to import
    from raykd.launch.train import fit

    os.environ["RAY_TMPDIR"] = str(store.root.parent)  # no other cluster is registered there
    os.environ.pop("RAY_ADDRESS", None)
    scale = Scale(workers=1, checkpoint_seconds=NEVER)
    with connected(scale, say):
        started = time.monotonic()
        fit(store, run, 1, scale)
        return time.monotonic() - started


def _local(root: str, run: StudentRun, ready: Event, go: Event) -> None:
    """The plain loop in a separate process, started by `go`."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as Ray's worker does
    host = local_host(Store(root), run, Scale(checkpoint_seconds=NEVER))
    ready.set()
    go.wait()
    train(Store(root), run, host)


class Clock:
    """The CPU seconds that a run's process has used at the end of each epoch."""

    def __init__(
        self,
        folder: Path,
        process: Callable[[], int],
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        self._file = folder / METRICS
        self._process = process
        self._begun = begun
        self._used: list[float | None] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.01):
            lines = self._file.read_bytes().count(b"\n") if self._file.is_file() else 0
            if lines < len(self._used):  # a worker died, and another began again
                self._used.clear()
            if lines > len(self._used):
                self._used += [None] * (lines - len(self._used) - 1)  # ended unobserved
                self._used.append(self._seconds())
                self._begun()

    def _seconds(self) -> float | None:
        """CPU seconds so far; None where the process has just ended."""
        with contextlib.suppress(OSError, LookupError):
            return _process_seconds(self._process())
        return None

    def stop(self) -> list[float]:
        """CPU seconds of each epoch except the first and those whose end was not observed."""
        self._stopped.set()
        self._thread.join()
        return [b - a for a, b in pairwise(self._used) if a is not None and b is not None]


def _process_seconds(pid: int) -> float:
    """CPU seconds of a process, user and system, of all its threads."""
    fields = _status(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ray_worker() -> int:
    """The Ray Train worker among the processes that come from this one."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            if command.read_bytes().startswith(b"ray::RayTrainWorker"):
                pid = ancestor = int(command.parent.name)
                while ancestor > 1 and ancestor != os.getpid():
                    ancestor = int(_status(ancestor)[1])
                if ancestor == os.getpid():
                    return pid
    raise LookupError("no process of Ray Train's worker comes from this one")


def _status(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the process's state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
