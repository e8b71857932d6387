"""Loggers: receivers of the numbers of a training, epoch by epoch."""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from raykd.core.record import fingerprint
from raykd.recipes import TeacherRun, Training
from raykd.storage.store import Store

Metrics = Mapping[str, Any]  # one epoch's numbers, and dicts of lists from some methods


class Logger(Protocol):
    """Receiver of the metrics of trainings, which may follow one another in a process."""

    def begin(self, run: Training, history: Sequence[Metrics]) -> None:
        """Start a training; `history` has the epochs of a resumed one, up to its checkpoint."""
        ...

    def epoch(self, run: Training, metrics: Metrics) -> None:
        """Record the metrics of an epoch."""
        ...

    def end(self, run: Training, result: Metrics | None) -> None:
        """Finish; `result` is the content of result.json, None where the training stopped early."""
        ...


class Labels(NamedTuple):
    """Names that group trainings."""

    experiment: str = ""  # empty where a recipe is trained without one
    trial: str | None = None  # its name in a sweep


NO_LABELS = Labels()


class Tracker(ABC):
    """A logger that `scale.track` can name, such as TensorBoard; one is made per training.

    Only rank 0 of a training has one. An exception of a method stops the tracker, with a warning,
    and not the training.
    """

    package: ClassVar[str] = ""  # module that must be importable; empty: none
    install: ClassVar[str] = ""  # package that pip installs for it; empty: the same

    def __init__(self, store: Store, labels: Labels = NO_LABELS) -> None:
        self.store = store
        self.labels = labels

    @classmethod  # noqa: B027 - most trackers have nothing to check
    def check(cls, store: Store) -> None:
        """Raise `ConfigError` where nothing could be recorded; called before any work begins."""

    @abstractmethod
    def begin(self, run: Training, history: Sequence[Metrics]) -> None:
        """As `Logger.begin`."""

    @abstractmethod
    def epoch(self, run: Training, metrics: Metrics) -> None:
        """As `Logger.epoch`."""

    @abstractmethod
    def end(self, run: Training, result: Metrics | None) -> None:
        """As `Logger.end`; also called where `begin` was not, as for given weights."""


def title(run: Training) -> str:
    """A training's name: method, model, seed, and the start of its fingerprint."""
    method = "teacher" if isinstance(run, TeacherRun) else run.method.name
    words = [method, run.model or "helpers", f"seed{run.seed}", fingerprint(run)[:8]]
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", word) for word in words)


@dataclass
class RunLog:
    """The loggers of one training.

    The first failure of a tracker is logged and stops it, but not the training.
    """

    run: Any  # the recipe; None for a host that was made without one
    loggers: tuple[Logger, ...] = ()
    trackers: dict[str, Logger] = field(default_factory=dict)  # by name

    def begin(self, history: Sequence[Metrics]) -> None:
        """Call `begin` of every logger."""
        self._each(lambda logger: logger.begin(self.run, history))

    def epoch(self, metrics: Metrics) -> None:
        """Call `epoch` of every logger."""
        self._each(lambda logger: logger.epoch(self.run, metrics))

    def end(self, result: Metrics | None) -> None:
        """Call `end` of every logger."""
        self._each(lambda logger: logger.end(self.run, result))

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, tracker in [*self.trackers.items()]:
            try:
                call(tracker)
            except Exception:  # an outage of a tracker is no reason to lose a training
                logging.getLogger(__name__).warning("%s stops recording", name, exc_info=True)
                del self.trackers[name]
        for logger in self.loggers:
            call(logger)
