"""Loggers: receivers of the numbers of a training, epoch by epoch."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class RunLog:
    """The loggers of one training."""

    run: Any  # the recipe; None for a host that was made without one
    loggers: tuple[Logger, ...] = ()

    def begin(self, history: Sequence[Metrics]) -> None:
        """Call `begin` of every logger."""
        for logger in self.loggers:
            logger.begin(self.run, history)

    def epoch(self, metrics: Metrics) -> None:
        """Call `epoch` of every logger."""
        for logger in self.loggers:
            logger.epoch(self.run, metrics)

    def end(self, result: Metrics | None) -> None:
        """Call `end` of every logger."""
        for logger in self.loggers:
            logger.end(self.run, result)


class Guarded:
    """A logger whose first failure is logged and stops it, but not the training."""

    def __init__(self, name: str, logger: Logger) -> None:
        self._name = name
        self._logger: Logger | None = logger

    def begin(self, run: Training, history: Sequence[Metrics]) -> None:
        """Start a training."""
        self._call(lambda logger: logger.begin(run, history))

    def epoch(self, run: Training, metrics: Metrics) -> None:
        """Record the metrics of an epoch."""
        self._call(lambda logger: logger.epoch(run, metrics))

    def end(self, run: Training, result: Metrics | None) -> None:
        """Finish."""
        self._call(lambda logger: logger.end(run, result))

    def _call(self, call: Callable[[Logger], None]) -> None:
        if self._logger is None:
            return
        try:
            call(self._logger)
        except Exception:  # an outage of a tracker is no reason to lose a training
            logging.getLogger(__name__).warning("%s stops recording", self._name, exc_info=True)
            self._logger = None
