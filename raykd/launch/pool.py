"""Ray workers that are started once and given one unit of work after another.

A unit that needs one worker (a shard, a student, a teacher) costs no worker start of its own.
A worker that dies takes only its unit along, which is given to a new worker: a student goes on
from its checkpoint, and shards that were finished are there.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from raykd.engine.compare import Comparison, compare
from raykd.engine.fit import ShardMaker, default_device, local_host, train
from raykd.engine.memory import keep_freed_memory
from raykd.engine.search import decide
from raykd.errors import RaykdError, WorkFailed
from raykd.experiment import Scale
from raykd.launch.cluster import check_fit, fitting, gpus_per_worker
from raykd.recipes import LogitsRun, Search, Training
from raykd.store import Store
from raykd.teachers.manifest import Part, Shard


class Worker:
    """One process that does units of work, one at a time."""

    def __init__(self, place: str, scale: Scale) -> None:
        torch.set_num_threads(max(1, int(scale.cpus)))
        keep_freed_memory()
        self._store = Store(place, scale.local_gb)
        self._scale = scale
        self._maker: tuple[LogitsRun, ShardMaker] | None = None

    def shard(self, run: LogitsRun, part: Part) -> Shard:
        """Compute one shard; the teacher stays loaded for the next."""
        if self._maker is None or self._maker[0] != run:
            self._maker = (run, ShardMaker(self._store, run, default_device(), self._scale))
        return self._maker[1].make(part)

    def compare(self, run: LogitsRun, rows: int) -> Comparison:
        """Compare a cache with the live teacher."""
        return compare(self._store, run, rows, default_device())

    def decide(self, search: Search) -> None:
        """Choose the next anchor of a search."""
        decide(self._store, search, default_device())

    def train(self, run: Training) -> None:
        """Train one teacher, prelude or student, from its checkpoint if it has one."""
        self._maker = None
        train(self._store, run, local_host(self._store, run, self._scale))


@dataclass(frozen=True)
class Unit:
    """A call of one of a worker's methods."""

    method: str
    arguments: tuple[Any, ...]
    label: str


class Pool:
    """A fixed number of workers."""

    def __init__(self, store: Store, scale: Scale, size: int | None = None) -> None:
        check_fit(scale, 1, "a worker")
        self._store = store
        self._scale = scale
        fit = fitting(scale)
        self.size = min(size or scale.parallel or fit, fit)
        self._idle: list[Any] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._idle:
            ray.kill(worker)
        self._idle.clear()

    def run(
        self,
        units: Sequence[Unit],
        done: Callable[[Unit, Any], None] = lambda unit, value: None,
        begun: Callable[[Unit], None] = lambda unit: None,
    ) -> None:
        """Carry out every unit, whatever becomes of the others, then raise what went wrong.

        `done` gets each unit's value as it comes. A unit whose worker died is tried again, up
        to `scale.max_failures` times; one that raised is not. Raises the unit's own error if
        it is a `RaykdError` and the only one, `WorkFailed` otherwise.
        """
        waiting, running = deque(units), {}
        deaths: dict[Unit, int] = {}
        failed: list[tuple[Unit, BaseException]] = []
        try:
            while waiting or running:
                while waiting and len(running) < self.size:
                    unit, worker = waiting.popleft(), self._worker()
                    begun(unit)
                    running[getattr(worker, unit.method).remote(*unit.arguments)] = (unit, worker)
                [reference], _ = ray.wait([*running], num_returns=1)
                unit, worker = running.pop(reference)
                try:
                    value = ray.get(reference)
                except RayTaskError as error:
                    self._idle.append(worker)
                    failed.append((unit, error.cause or error))
                except RayActorError as error:
                    deaths[unit] = deaths.get(unit, 0) + 1
                    if deaths[unit] > self._scale.max_failures:
                        failed.append((unit, error))
                    else:
                        waiting.appendleft(unit)
                else:
                    self._idle.append(worker)
                    done(unit, value)
        finally:
            for _, worker in running.values():
                ray.kill(worker)
        _raise(failed)

    def _worker(self) -> Any:
        """A worker that has nothing to do; a new one where all are busy or gone."""
        if self._idle:
            return self._idle.pop()
        actor = ray.remote(num_cpus=self._scale.cpus, num_gpus=gpus_per_worker(self._scale))(Worker)
        return actor.remote(self._store.url, self._scale)


def _raise(failed: list[tuple[Unit, BaseException]]) -> None:
    """Raise what went wrong with some units, if anything did."""
    if not failed:
        return
    if len(failed) == 1 and isinstance(failed[0][1], RaykdError):
        raise failed[0][1]
    lines = [f"{unit.label}: {str(error).strip().splitlines()[-1]}" for unit, error in failed]
    raise WorkFailed("\n".join([f"{len(failed)} units of work failed:", *lines])) from failed[0][1]
