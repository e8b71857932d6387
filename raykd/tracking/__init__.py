"""An epoch's numbers: the `Logger` protocol and its implementations. Begin with `logger.py`.

To add a tracker: one file with a subclass of `Tracker`, and one line in the table here.
"""

import importlib.util
from collections.abc import Iterable

from raykd.core.errors import ConfigError
from raykd.core.registry import Registry
from raykd.recipes import Training
from raykd.storage.store import Store
from raykd.tracking.jsonl import JsonLines
from raykd.tracking.logger import NO_LABELS, Labels, Logger, RunLog, Tracker
from raykd.tracking.mlflow import MLflow
from raykd.tracking.tensorboard import TensorBoard
from raykd.tracking.wandb import WandB

TRACKERS: Registry[type[Tracker]] = Registry("tracker")
TRACKERS.add("tensorboard", TensorBoard)
TRACKERS.add("wandb", WandB)
TRACKERS.add("mlflow", MLflow)


def check_trackers(names: Iterable[str], store: Store) -> None:
    """Raise `ConfigError` where `scale.track` names an unknown tracker, or one that cannot work."""
    for name in names:
        try:
            tracker = TRACKERS[name]
            if tracker.package and not _is_installed(tracker.package):
                raise ConfigError(
                    f"{name} needs the package {tracker.package}, which is not installed; "
                    f"`pip install '{tracker.install or tracker.package}'`, or leave {name} out"
                )
            tracker.check(store)
        except ConfigError as error:
            raise ConfigError(f"experiment.scale.track: {error}") from error


def _is_installed(package: str) -> bool:
    """True for a package with code; a folder of that name, as W&B makes one, has none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def run_log(
    store: Store,
    run: Training,
    track: Iterable[str],
    *loggers: Logger,
    labels: Labels = NO_LABELS,
) -> RunLog:
    """The log of a training: metrics.jsonl, the trackers that `scale.track` names, and others."""
    trackers: dict[str, Logger] = {name: TRACKERS[name](store, labels) for name in track}
    return RunLog(run, (JsonLines(store.path(run)), *loggers), trackers)
