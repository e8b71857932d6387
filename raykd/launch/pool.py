"""Ray workers that are started once and given one unit of work after another.

A unit that needs one worker (a shard, a student, a teacher) costs no worker start of its own.
A worker that dies takes only its unit along, which is given to a new worker: a student goes on
from its checkpoint, and shards that were finished are there.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from raykd.config.scale import Scale
from raykd.core.errors import RaykdError, WorkFailed, of_codes
from raykd.launch import cluster_watch
from raykd.launch.capacity import await_room, fitting, gpus_per_worker
from raykd.launch.preemption import NodeNotice, draining
from raykd.launch.prometheus import Prometheus
from raykd.outputs.manifest import Part, Shard
from raykd.recipes import LogitsRun, Search, Training
from raykd.storage.store import Store
from raykd.training.cache_verify import Comparison, compare
from raykd.training.memory import keep_freed_memory
from raykd.training.route_search import decide
from raykd.training.runs import ShardMaker, default_device, local_host, train

DIED = (RayActorError, OutOfMemoryError)  # the second: Ray's memory monitor has killed it
_LOOK_SECONDS = 2.0  # between two looks for room, and for nodes that are about to go


class Worker:
    """One process that does units of work, one at a time."""

    def __init__(self, place: str, scale: Scale, experiment: str = "") -> None:
        self._prometheus = Prometheus(experiment)
        torch.set_num_threads(max(1, int(scale.cpus)))
        keep_freed_memory()
        self._store = Store(place, scale.local_gb)
        self._scale = scale
        self._notice = NodeNotice()
        self._maker: tuple[LogitsRun, ShardMaker] | None = None

    def node(self) -> str:
        """The id of the node that it lives on."""
        return ray.get_runtime_context().get_node_id()

    def shard(self, run: LogitsRun, part: Part) -> Shard:
        """Compute one shard; the teacher stays loaded for the next."""
        self._store.stand(made=True)
        if self._maker is None or self._maker[0] != run:
            self._maker = (run, ShardMaker(self._store, run, default_device(), self._scale))
        return self._maker[1].make(part)

    def compare(self, run: LogitsRun, rows: int) -> Comparison:
        """Compare a cache with the live teacher."""
        return compare(self._store, run, rows, default_device())

    def decide(self, search: Search) -> None:
        """Choose the next anchor of a search."""
        self._store.stand(made=True)
        decide(self._store, search, default_device())

    def train(self, run: Training) -> None:
        """Train one teacher, prelude or student, from its checkpoint if it has one."""
        self._store.stand(made=True)
        self._maker = None
        host = local_host(self._store, run, self._scale, [self._prometheus], self._notice)
        train(self._store, run, host)


@dataclass(frozen=True)
class Unit:
    """A call of one of a worker's methods."""

    method: str
    arguments: tuple[Any, ...]
    label: str


class Pool:
    """Workers, as many as the cluster has room for: nodes may come and go."""

    def __init__(
        self,
        store: Store,
        scale: Scale,
        size: int | None = None,
        say: Callable[[str], None] = lambda text: None,
        experiment: str = "",
    ) -> None:
        """At most `size` workers. Raises `NoRoom` where there is room for none.

        `experiment` is the name that their metrics go by.
        """
        self._experiment = experiment
        self._store = store
        self._scale = scale
        self._say = say
        self._limit = size or scale.parallel
        self._starting: dict[Any, Any] = {}  # what says that it is up -> worker
        self._idle: list[Any] = []
        self._nodes: dict[Any, str] = {}  # worker -> where it lives
        self._failed_starts = 0
        store.stand()
        self._going: set[str] = set()  # nodes that are about to go
        self._asked = self._grown = -math.inf  # when the cluster was asked
        await_room(scale, 1, "a worker", say)

    @property
    def size(self) -> int:
        """How many workers there may be at the moment."""
        fit = fitting(self._scale)
        return fit if self._limit is None else min(self._limit, fit)

    @property
    def most(self) -> int:
        """How many there may be once the cluster has grown."""
        return self._limit or self.size if self._scale.wait_minutes else self.size

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in [*self._idle, *self._starting.values()]:
            ray.kill(worker)
        self._idle.clear()
        self._starting.clear()

    def run(
        self,
        units: Sequence[Unit],
        done: Callable[[Unit, Any], None] = lambda unit, value: None,
        begun: Callable[[Unit], None] = lambda unit: None,
    ) -> None:
        """Carry out every unit, whatever becomes of the others, then raise what went wrong.

        `done` gets each unit's value as it comes. A unit whose worker died is tried again, up
        to `scale.max_failures` times, not counting those whose node went; one that raised is not.
        Raises the unit's own error if it is a `RaykdError` and the only one; of several, one with
        the status that all have, else `WorkFailed`.
        """
        waiting, running = deque(units), {}
        deaths: Counter[Unit] = Counter()
        failed: list[tuple[Unit, BaseException]] = []
        try:
            while waiting or running:
                while waiting and (worker := self._ready()) is not None:
                    unit = waiting.popleft()
                    begun(unit)
                    running[getattr(worker, unit.method).remote(*unit.arguments)] = (unit, worker)
                if waiting and (self._grow_due() or not (running or self._starting)):
                    self._grow(len(running), len(waiting))
                references = [*running, *self._starting]
                ready, _ = ray.wait(references, num_returns=1, timeout=_LOOK_SECONDS)
                if not ready:
                    continue
                [reference] = ready
                if reference in self._starting:
                    self._take_up(reference)
                    continue
                unit, worker = running.pop(reference)
                try:
                    value = ray.get(reference)
                except RayTaskError as error:
                    self._idle.append(worker)
                    failed.append((unit, error.cause or error))
                except DIED as error:
                    cluster_watch.check()
                    ray.kill(worker)  # it may only be out of reach, and go on
                    deaths[unit] += not self._went_with_its_node(worker)
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

    def _ready(self) -> Any:
        """A worker that has nothing to do and whose node stays; None where there is none."""
        if self._idle and time.monotonic() - self._asked >= _LOOK_SECONDS:
            self._going, self._asked = draining(), time.monotonic()
        while self._idle:
            worker = self._idle.pop()
            if self._nodes.get(worker) not in self._going:
                return worker
            ray.kill(worker)
        return None

    def _grow_due(self) -> bool:
        """Whether it is time to look for room again."""
        return time.monotonic() - self._grown >= _LOOK_SECONDS

    def _grow(self, busy: int, waiting: int) -> None:
        """Start workers for what waits, as many as there is room for."""
        if not busy and not self.size:
            await_room(self._scale, 1, "a worker", self._say)
        self._grown = time.monotonic()
        wanted = min(self.size, busy + waiting)
        for _ in range(wanted - busy - len(self._starting)):
            kind = ray.remote(
                num_cpus=self._scale.cpus,
                num_gpus=gpus_per_worker(self._scale),
                scheduling_strategy="SPREAD",
            )(Worker)
            worker = kind.remote(self._store.url, self._scale, self._experiment)
            self._starting[worker.node.remote()] = worker

    def _take_up(self, reference: Any) -> None:
        """A worker is up, or could not be started."""
        worker = self._starting.pop(reference)
        try:
            self._nodes[worker] = ray.get(reference)
        except DIED as error:
            cluster_watch.check()
            self._failed_starts += 1
            if self._failed_starts > self._scale.max_failures:
                said = f"workers cannot be started, at last with: {_last_line(error)}"
                raise WorkFailed(said) from error
            return
        self._failed_starts = 0
        self._idle.append(worker)

    def _went_with_its_node(self, worker: Any) -> bool:
        """Whether a dead worker's node is gone, too."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return self._nodes.pop(worker, None) not in alive


def _raise(failed: list[tuple[Unit, BaseException]]) -> None:
    """Raise what went wrong with some units, if anything did."""
    if not failed:
        return
    if len(failed) == 1 and isinstance(failed[0][1], RaykdError):
        raise failed[0][1]
    lines = [f"{unit.label}: {_last_line(error)}" for unit, error in failed]
    codes = (
        error.code if isinstance(error, RaykdError) else WorkFailed.code for _, error in failed
    )
    message = "\n".join([f"{len(failed)} units of work failed:", *lines])
    raise of_codes(codes, message) from failed[0][1]


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
