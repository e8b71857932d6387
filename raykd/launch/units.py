"""Units of work, and the objects that do them. Without Ray, so that one process needs none."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from raykd.config.scale import Scale
from raykd.core.errors import RaykdError
from raykd.core.shutdown import Notice
from raykd.outputs.manifest import Part, Shard
from raykd.recipes import OutputsRun, Search, Training
from raykd.storage.store import Store
from raykd.tracking.logger import Labels, Logger
from raykd.training.cache_verify import Comparison, compare
from raykd.training.memory import keep_freed_memory
from raykd.training.route_search import decide
from raykd.training.runs import ShardMaker, default_device, local_host, train


@dataclass(frozen=True)
class Unit:
    """A unit of work for one process: a call of a method of the object that does it."""

    method: str
    arguments: tuple[Any, ...]
    label: str  # in messages


@dataclass(frozen=True)
class Event:
    """A change of a unit's state."""

    unit: Unit
    state: Literal["begun", "done", "failed"]  # begun: again, if its worker died
    value: Any = None  # return value of the method
    error: RaykdError | None = None  # why it failed


class Strategy(Protocol):
    """A way to do units of work: in this process, or in a pool of Ray workers."""

    @property
    def most(self) -> int:
        """The largest number of units done at a time."""
        ...

    def run(self, units: Sequence[Unit], *, patient: bool = False) -> Generator[Event, None, None]:
        """Do every unit, whatever becomes of the others; closing the iterator stops the rest.

        patient: they may be short, so more workers are started only where that pays.
        """
        ...


class Local:
    """Strategy that does units one after another in this process."""

    most = 1

    def __init__(self, target: Any) -> None:
        """`target` has the methods that the units name."""
        self._target = target

    def run(self, units: Sequence[Unit], *, patient: bool = False) -> Generator[Event, None, None]:
        """Do every unit. What is no `RaykdError` is raised at once."""
        for unit in units:
            yield Event(unit, "begun")
            try:
                value = getattr(self._target, unit.method)(*unit.arguments)
            except RaykdError as error:
                yield Event(unit, "failed", error=error)
            else:
                yield Event(unit, "done", value)


class ArtefactMaker:
    """Does units of work for a store in this process, with `scale.cpus` threads."""

    def __init__(
        self,
        store: Store,
        scale: Scale,
        notice: Callable[[], AbstractContextManager[Notice]],
        loggers: Sequence[Logger],
        labels: Labels,
    ) -> None:
        """See `Executor` for `notice` and `loggers`; `labels` are for trackers."""
        torch.set_num_threads(max(1, int(scale.cpus)))
        keep_freed_memory()
        self._store, self._scale = store, scale
        self._notice, self._loggers, self._labels = notice, loggers, labels
        self._shards: tuple[OutputsRun, ShardMaker] | None = None

    def train(self, run: Training) -> None:
        """Train one teacher, prelude or student, from its checkpoint if it has one."""
        self._store.ensure_root(made=True)
        self._shards = None  # frees the teacher
        with self._notice() as notice:
            host = local_host(self._store, run, self._scale, self._loggers, notice, self._labels)
            train(self._store, run, host)

    def shard(self, run: OutputsRun, part: Part) -> Shard:
        """Compute one shard of a cache; the teacher stays loaded for the next."""
        self._store.ensure_root(made=True)
        if self._shards is None or self._shards[0] != run:
            self._shards = (run, ShardMaker(self._store, run, default_device(), self._scale))
        return self._shards[1].make(part)

    def compare(self, run: OutputsRun, rows: int) -> Comparison:
        """Compare some rows of a cache with the live teacher."""
        return compare(self._store, run, rows, default_device())

    def decide(self, search: Search) -> None:
        """Choose the next anchor of a search, whose last stage is finished."""
        self._store.ensure_root(made=True)
        decide(self._store, search, default_device())
