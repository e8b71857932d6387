"""Loggers: receivers of the numbers of a training, epoch by epoch."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from raykd.recipes import Training

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
