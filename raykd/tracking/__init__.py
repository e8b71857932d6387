"""An epoch's numbers: the `Logger` protocol and its implementations. Begin with `logger.py`.

To add a tracker: one file with a class as `TensorBoard`, and one line in the table here.
"""

import importlib.util
from collections.abc import Iterable
from typing import ClassVar, Protocol

from raykd.core.errors import ConfigError
from raykd.core.registry import Registry
from raykd.recipes import Training
from raykd.storage.store import Store
from raykd.tracking.jsonl import JsonLines
from raykd.tracking.logger import Logger, RunLog
from raykd.tracking.tensorboard import TensorBoard


class Tracker(Logger, Protocol):
    """A logger that `scale.track` can name."""

    package: ClassVar[str]  # that must be installed

    def __init__(self, store: Store) -> None: ...


TRACKERS: Registry[type[Tracker]] = Registry("tracker")
TRACKERS.add("tensorboard", TensorBoard)


def check_trackers(names: Iterable[str]) -> None:
    """Raise `ConfigError` where `scale.track` names an unknown tracker or one not installed."""
    for name in names:
        try:
            package = TRACKERS[name].package
        except ConfigError as error:
            raise ConfigError(f"experiment.scale.track: {error}") from error
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"experiment.scale.track: {name} needs the package {package}, which is not "
                f"installed; `pip install {package}`, or leave {name} out"
            )


def run_log(store: Store, run: Training, track: Iterable[str], *loggers: Logger) -> RunLog:
    """The log of a training: metrics.jsonl, the trackers that `scale.track` names, and others."""
    trackers: dict[str, Logger] = {name: TRACKERS[name](store) for name in track}
    return RunLog(run, (JsonLines(store.path(run)), *loggers), trackers)
