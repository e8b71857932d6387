"""Pool of Ray workers that are started once and given one unit of work after another.

A unit for one worker (a shard, a student, a teacher) costs no start of a worker of its own. A
worker that dies takes only its unit along, which is given to another one: a student goes on from
its checkpoint, and the shards that were finished are in the store.
"""

import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from raykd.config.scale import Scale
from raykd.core.errors import RaykdError, WorkFailed, last_line
from raykd.core.plugins import Plugin
from raykd.data.packing import Packed, Packing, Part
from raykd.launch import cluster_watch
from raykd.launch.capacity import await_room, fitting, gpus_per_worker
from raykd.launch.preemption import NodeNotice, draining
from raykd.launch.prometheus import Prometheus
from raykd.launch.units import ArtefactMaker, Event, Unit
from raykd.storage.store import Store
from raykd.tracking.logger import Labels

_DIED = (RayActorError, OutOfMemoryError)  # the second: killed by Ray's memory monitor
_LOOK_SECONDS = 2.0  # between two looks at the cluster's nodes
_PATIENCE_SECONDS = 20.0  # a worker may have waited for its node, which is no time of starting


class Worker:
    """Ray actor that does units of work, one at a time."""

    def __init__(self, make_target: Callable[[], Any]) -> None:
        self._target = make_target()

    def node(self) -> str:
        """The id of the node that it runs on."""
        return ray.get_runtime_context().get_node_id()

    def do(self, unit: Unit) -> Any:
        """Do a unit of work; returns its value."""
        return getattr(self._target, unit.method)(*unit.arguments)


class Pool:
    """Strategy that does units in Ray workers, as many as the cluster has room for.

    Nodes may come and go.
    """

    def __init__(
        self,
        make_target: Callable[[], Any],
        scale: Scale,
        say: Callable[[str], None] = lambda text: None,
        limit: int | None = None,
    ) -> None:
        """At most `limit` workers. Raises `NoRoom` where there is room for none.

        make_target: makes, in a worker, the object that has the methods that units name.
        """
        self._make_target, self._scale, self._say = make_target, scale, say
        self._limit = limit or scale.parallel
        self._starting: dict[Any, Any] = {}  # reference that is ready when a worker is -> worker
        self._idle: list[Any] = []
        self._nodes: dict[Any, str] = {}  # worker -> id of its node
        self._failed_starts = 0
        self._began: dict[Any, float] = {}  # worker that is being started -> since when, in seconds
        self._start_seconds = 0.0  # that the last worker took
        self._patient_seconds = 0.0  # that patient units have gone on for
        self._draining: set[str] = set()  # ids of nodes
        self._looked_for_draining = self._looked_for_room = -math.inf
        await_room(scale, 1, "a worker", say)

    @property
    def size(self) -> int:
        """The number of workers that fit the cluster as it is."""
        fit = fitting(self._scale)
        return fit if self._limit is None else min(self._limit, fit)

    @property
    def most(self) -> int:
        """The number of workers once the cluster has grown."""
        return self._limit or self.size if self._scale.wait_minutes else self.size

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in [*self._idle, *self._starting.values()]:
            ray.kill(worker)
        self._idle.clear()
        self._starting.clear()

    def run(self, units: Sequence[Unit], *, patient: bool = False) -> Generator[Event, None, None]:
        """Do every unit, whatever becomes of the others.

        A unit whose worker died is tried again, up to `scale.max_failures` times, not counting
        deaths together with the node; one that raised is not. Closing the iterator kills the
        workers that are busy.

        patient: no worker is started beside others until such units have gone on, in all, for as
        long as a worker takes to start.
        """
        waiting, running = deque(units), {}
        began = time.monotonic()
        grows_from = began + min(self._start_seconds, _PATIENCE_SECONDS) - self._patient_seconds
        deaths: Counter[Unit] = Counter()
        try:
            while waiting or running:
                while waiting and (worker := self._ready()) is not None:
                    unit = waiting.popleft()
                    running[worker.do.remote(unit)] = (unit, worker)
                    yield Event(unit, "begun")
                now = time.monotonic()
                is_due = now - self._looked_for_room >= _LOOK_SECONDS
                is_due = is_due and (now >= grows_from or not patient)
                if waiting and (is_due or not (running or self._starting)):
                    self._grow(len(running), len(waiting))
                references = [*running, *self._starting]
                ready, _ = ray.wait(references, num_returns=1, timeout=_LOOK_SECONDS)
                if not ready:
                    continue
                [reference] = ready
                if reference in self._starting:
                    self._receive_worker(reference)
                    continue
                unit, worker = running.pop(reference)
                try:
                    value = ray.get(reference)
                except RayTaskError as error:
                    self._idle.append(worker)
                    yield Event(unit, "failed", error=_reason(unit, error))
                except _DIED as error:
                    cluster_watch.check()
                    ray.kill(worker)  # it may be alive and out of reach
                    deaths[unit] += not self._went_with_its_node(worker)
                    if deaths[unit] > self._scale.max_failures:
                        text = f"{unit.label}: {deaths[unit]} workers died of it, the last with: "
                        failure = WorkFailed(text + last_line(error))
                        failure.__cause__ = error
                        yield Event(unit, "failed", error=failure)
                    else:
                        waiting.appendleft(unit)
                else:
                    self._idle.append(worker)
                    yield Event(unit, "done", value)
        finally:
            self._patient_seconds += (time.monotonic() - began) * patient
            for _, worker in running.values():
                ray.kill(worker)

    def _ready(self) -> Any:
        """Pop an idle worker whose node stays; None where there is none."""
        if self._idle and time.monotonic() - self._looked_for_draining >= _LOOK_SECONDS:
            self._draining, self._looked_for_draining = draining(), time.monotonic()
        while self._idle:
            worker = self._idle.pop()
            if self._nodes.get(worker) not in self._draining:
                return worker
            ray.kill(worker)
        return None

    def _grow(self, busy: int, waiting: int) -> None:
        """Start workers for the units that wait, as many as there is room for."""
        if not busy and not self.size:
            await_room(self._scale, 1, "a worker", self._say)
        self._looked_for_room = time.monotonic()
        wanted = min(self.size, busy + waiting)
        kind = ray.remote(
            num_cpus=self._scale.cpus,
            num_gpus=gpus_per_worker(self._scale),
            scheduling_strategy="SPREAD",
        )(Worker)
        for _ in range(wanted - busy - len(self._starting)):
            worker = kind.remote(self._make_target)
            self._starting[worker.node.remote()] = worker
            self._began[worker] = self._looked_for_room

    def _receive_worker(self, reference: Any) -> None:
        """Take in a worker that has started. Raises `WorkFailed` where too many did not."""
        worker = self._starting.pop(reference)
        self._start_seconds = time.monotonic() - self._began.pop(worker)
        try:
            self._nodes[worker] = ray.get(reference)
        except _DIED as error:
            cluster_watch.check()
            self._failed_starts += 1
            if self._failed_starts > self._scale.max_failures:
                text = f"workers cannot be started, at last with: {last_line(error)}"
                raise WorkFailed(text) from error
            return
        self._failed_starts = 0
        self._idle.append(worker)

    def _went_with_its_node(self, worker: Any) -> bool:
        """True where a dead worker's node is gone, too."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return self._nodes.pop(worker, None) not in alive


def _reason(unit: Unit, error: RayTaskError) -> RaykdError:
    """The error that a unit raised; other exceptions than ours as `WorkFailed`."""
    cause = error.cause or error
    if isinstance(cause, RaykdError):
        return cause
    failure = WorkFailed(f"{unit.label}: {last_line(cause)}")
    failure.__cause__ = cause
    return failure


def artefact_maker(
    url: str, scale: Scale, experiment: str, plugins: Sequence[Plugin] = ()
) -> ArtefactMaker:
    """The target of a pool's worker for the store at a path or URL.

    plugins: those of the driver, which arriving here has loaded.
    """
    store, notice = Store(url, scale.local_gb), NodeNotice()
    loggers, labels = [Prometheus(experiment)], Labels(experiment)
    return ArtefactMaker(store, scale, lambda: contextlib.nullcontext(notice), loggers, labels)


def make_shards(
    packing: Packing, existing: Mapping[Part, Sequence[str]], workers: int
) -> Iterator[Packed]:
    """Make the shards of a pack with that many workers of the connected cluster.

    Yields each as it is finished. `existing`: files that may be a part's shard. Raises the first
    error of a worker, and `WorkFailed` where too many workers die.
    """
    units = [
        Unit("make", (part, existing.get(part, ())), f"shard {part.number} of {part.split}")
        for part in packing.parts
    ]
    shared = ray.put(packing)  # may be large: the places of a million images
    scale = Scale(cpus=1, gpus=0)
    with (
        Pool(lambda: ray.get(shared), scale, limit=workers) as pool,
        contextlib.closing(pool.run(units)) as events,
    ):
        for event in events:
            if event.error is not None:
                raise event.error
            if event.state == "done":
                yield event.value
