"""Event files for TensorBoard: one folder per training, below STORE/tensorboard."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from raykd.recipes import Training
from raykd.storage.store import Store
from raykd.tracking.jsonl import numbers
from raykd.tracking.logger import NO_LABELS, Labels, Metrics, Tracker, title

FOLDER = "tensorboard"
_PUSH_SECONDS = 30.0  # between two uploads of a run's events to a remote store


class TensorBoard(Tracker):
    """Scalars under the names that they have in metrics.jsonl; steps are epochs, from 0.

    A resumed training begins its events anew from its history, so that no epoch comes twice,
    none is missing, and a training may resume on another node.
    """

    package: ClassVar[str] = "tensorboard"
    install: ClassVar[str] = "raykd[track]"

    def __init__(self, store: Store, labels: Labels = NO_LABELS) -> None:
        super().__init__(store, labels)
        self._writer: Any = None
        self._pushed = time.monotonic()

    def begin(self, run: Training, history: Sequence[Metrics]) -> None:
        """Write the recipe and the epochs of `history`."""
        from torch.utils.tensorboard import SummaryWriter

        folder = events_folder(self.store, run)
        self.store.remove(folder)
        self._writer = SummaryWriter(str(folder), purge_step=0)
        text = json.dumps(run.plain(), indent=2)
        self._writer.add_text("recipe", f"```json\n{text}\n```")
        for metrics in history:
            self._add(metrics)
        self._writer.flush()

    def epoch(self, run: Training, metrics: Metrics) -> None:
        """Write an epoch's numbers."""
        self._add(metrics)
        self._writer.flush()
        if time.monotonic() - self._pushed >= _PUSH_SECONDS:
            self._push(run)

    def end(self, run: Training, result: Metrics | None) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._push(run)

    def _add(self, metrics: Metrics) -> None:
        for name, value in numbers(metrics).items():
            if name != "epoch":
                self._writer.add_scalar(name, value, metrics["epoch"])

    def _push(self, run: Training) -> None:
        """Copy the events to a remote store."""
        for path in events_folder(self.store, run).iterdir():
            self.store.push(path)
        self._pushed = time.monotonic()


def events_folder(store: Store, run: Training) -> Path:
    """The folder of a training's events."""
    return store.root / FOLDER / run.kind / title(run)
