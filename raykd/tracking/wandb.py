"""Weights & Biases: one run there per training."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.recipes import Training
from raykd.storage.store import Store
from raykd.tracking.jsonl import numbers, outcome
from raykd.tracking.logger import NO_LABELS, Labels, Metrics, Tracker, title

PROJECT = "raykd"
_FINISH_SECONDS = 60.0  # at most to wait for uploads at the end of a training


class WandB(Tracker):
    """Numbers under the names that they have in metrics.jsonl; steps are epochs, from 0.

    A run's id is the training's fingerprint, so that a resumed training goes on in its run. An
    epoch that the server has is not sent again. Offline, a resumed training writes a folder of its
    own from its history and removes the one before, so `wandb sync` after the training finds each
    epoch once. The config is the recipe; group: the experiment; job type: teachers, preludes or
    students; the summary has the result, with the best epoch's numbers as `best_NAME`.

    W&B's own environment variables apply, on every node that trains: WANDB_API_KEY, WANDB_MODE,
    WANDB_ENTITY, WANDB_PROJECT (default: raykd), WANDB_DIR (default: STORE/wandb),
    WANDB_FINISH_TIMEOUT (default: 60 seconds for what is still to be uploaded; `wandb sync` sends
    the rest). Nothing is printed unless WANDB_SILENT is false.
    """

    package: ClassVar[str] = "wandb"
    install: ClassVar[str] = "raykd[track]"

    def __init__(self, store: Store, labels: Labels = NO_LABELS) -> None:
        super().__init__(store, labels)
        self._run: Any = None
        self._next = 0  # first epoch that W&B does not have

    @classmethod
    def check(cls, store: Store) -> None:
        """Raise `ConfigError` where W&B would ask for a key while a training waits."""
        import wandb  # takes seconds to import

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise ConfigError(
                "wandb knows no API key; run `wandb login`, or set WANDB_API_KEY, or "
                "WANDB_MODE=offline to write files for `wandb sync`"
            )

    def begin(self, run: Training, history: Sequence[Metrics]) -> None:
        """Start or resume the run, and send the epochs of `history` that it lacks."""
        import wandb

        settings: dict[str, Any] = {"console": "off"}  # other trainings may print here
        if "WANDB_SILENT" not in os.environ:
            settings["silent"] = True
        if "WANDB_FINISH_TIMEOUT" not in os.environ:
            settings["finish_timeout"] = _FINISH_SECONDS
        config: dict[str, Any] = run.plain() | {"fingerprint": fingerprint(run)}
        if self.labels.trial is not None:
            config["trial"] = self.labels.trial
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=os.environ.get("WANDB_DIR", str(self.store.root)),
            id=fingerprint(run),
            resume="allow",
            name=title(run),
            group=self.labels.experiment or None,
            job_type=run.kind,
            config=config,
            reinit="create_new",  # a caller's own run stays open
            settings=wandb.Settings(**settings),
        )
        if self._run.offline:
            for folder in self._offline_folders():
                if folder != self._folder():
                    shutil.rmtree(folder, ignore_errors=True)
        self._next = self._run.starting_step
        for metrics in history:
            self.epoch(run, metrics)

    def epoch(self, run: Training, metrics: Metrics) -> None:
        """Send an epoch's numbers."""
        if metrics["epoch"] >= self._next:
            self._run.log(numbers(metrics), step=metrics["epoch"], commit=True)
            self._next = metrics["epoch"] + 1

    def end(self, run: Training, result: Metrics | None) -> None:
        """Finish the run, as failed where the training stopped early."""
        if self._run is None:
            return
        if result is not None:
            self._run.summary.update(outcome(result))
        self._run.finish(exit_code=0 if result is not None else 1)
        if self._run.offline and self._folder().is_relative_to(self.store.root):
            for path in self._folder().rglob("*"):
                if path.is_file():
                    self.store.push(path)
        self._run = None

    def _folder(self) -> Path:
        """The folder of the run's files."""
        return Path(self._run.settings.sync_dir)

    def _offline_folders(self) -> list[Path]:
        """The folders that offline runs of this training left, with the present one."""
        return [*self._folder().parent.glob(f"offline-run-*-{self._run.id}")]
