"""Prometheus metrics: names, descriptions, tags, and the values of each.

Ray puts `ray_` before a name, and `_total` after a counter's. Dashboards: `cluster/grafana`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raykd.core.counters import Meter
from raykd.core.record import fingerprint
from raykd.recipes import StudentRun, TeacherRun, Training
from raykd.tasks.base import HEADINGS

_RUN = ("experiment", "trial", "model", "method")
_WORKER = ("experiment", "trial", "rank")
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "raykd_epochs_done": ("Epochs that a training has done", _RUN),
    "raykd_epochs": ("Epochs that it will have done in the end", _RUN),
    "raykd_loss": ("Mean loss of its last epoch, by part; 'all' is the sum", (*_RUN, "part")),
    "raykd_top1": ("Top-1 accuracy in percent, on test or validation images", (*_RUN, "images")),
    "raykd_agreement": ("Percent of test images on which it agrees with its teacher", _RUN),
    "raykd_embedding_score": ("Percent by which embeddings are judged, by kind", (*_RUN, "kind")),
    "raykd_learning_rate": ("Learning rate at the start of its last epoch", _RUN),
    "raykd_images_per_second": ("Training images per second of a worker", _WORKER),
    "raykd_step_seconds": ("Seconds of a worker's step, without waits for data", _WORKER),
    "raykd_data_wait_share": ("Share of its time in which a worker waits for data", _WORKER),
    "raykd_trials": ("Trials of a sweep, by state", ("experiment", "state")),
}
_ALL = ("experiment",)
_BY = ("experiment", "result")
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "raykd_images": ("Images in training steps", _ALL),
    "raykd_busy_seconds": ("Seconds in training steps, without waits", _ALL),
    "raykd_data_wait_seconds": ("Seconds in which steps waited for images", _ALL),
    "raykd_cache_wait_seconds": ("Seconds in which steps waited for teacher outputs", _ALL),
    "raykd_cache_lookups": ("Look-ups of teacher outputs; a hit finds its view open", _BY),
    "raykd_cache_read_bytes": ("Bytes of the teacher outputs that were looked up", _ALL),
    "raykd_cache_shards": ("Shards that were opened: here already, or fetched to the node", _BY),
    "raykd_cache_fetched_bytes": ("Bytes of shards that were fetched from a remote store", _ALL),
    "raykd_cache_made_rows": ("Rows of caches that were computed", _ALL),
    "raykd_cache_made_bytes": ("Bytes of caches that were computed", _ALL),
}
# Fields of a `Meter`, and the counters (with the tag `result`) that they raise.
_COUNTED = (
    ("images", "raykd_images", None),
    ("step_seconds", "raykd_busy_seconds", None),
    ("data_seconds", "raykd_data_wait_seconds", None),
    ("cache_seconds", "raykd_cache_wait_seconds", None),
    ("cache_hits", "raykd_cache_lookups", "hit"),
    ("cache_misses", "raykd_cache_lookups", "miss"),
    ("cache_bytes", "raykd_cache_read_bytes", None),
    ("shards_here", "raykd_cache_shards", "here"),
    ("shards_fetched", "raykd_cache_shards", "fetched"),
    ("fetched_bytes", "raykd_cache_fetched_bytes", None),
    ("made_rows", "raykd_cache_made_rows", None),
    ("made_bytes", "raykd_cache_made_bytes", None),
)

Tags = tuple[tuple[str, str], ...]
Key = tuple[str, Tags]  # a metric and its tags


@dataclass(frozen=True)
class TrainingLabels:
    """Labels of a training's metrics."""

    run: Training
    experiment: str
    tune_trial: str | None = None
    rank: int = 0

    @property
    def trial(self) -> str:
        """Tune's name of the trial; without a trial, the start of the run's fingerprint."""
        return self.tune_trial or fingerprint(self.run)[:8]

    def key(self, name: str, **more: str) -> Key:
        """Key of a gauge, with the tags of this training and `more`."""
        method = "teacher" if isinstance(self.run, TeacherRun) else self.run.method.name
        values = {
            "experiment": self.experiment,
            "trial": self.trial,
            "model": self.run.model or "of the teacher",
            "method": method,
            "rank": str(self.rank),
            **more,
        }
        return name, tuple((tag, values[tag]) for tag in GAUGES[name][1])

    def gauges(self, metrics: Mapping[str, Any]) -> dict[Key, float]:
        """Gauges of an epoch's metrics; empty on other workers than the first."""
        if self.rank:
            return {}
        run, key = self.run, self.key
        whole = run.all_epochs() if isinstance(run, StudentRun) else run.optim.epochs
        before = whole - run.optim.epochs  # epochs of the stages before this one
        gauges = {
            key("raykd_epochs_done"): before + metrics["epoch"] + 1,
            key("raykd_epochs"): whole,
            key("raykd_top1", images="test"): metrics.get("top1"),
            key("raykd_top1", images="validation"): metrics.get("validation_top1"),
            key("raykd_agreement"): metrics.get("agreement"),
            **{
                key("raykd_embedding_score", kind=kind): metrics.get(kind)
                for kind in HEADINGS
                if kind != "top1"
            },
            key("raykd_learning_rate"): metrics.get("lr"),
        }
        for name, value in metrics.items():
            if name == "loss" or name.startswith("loss_"):
                gauges[key("raykd_loss", part=name.removeprefix("loss").strip("_") or "all")] = (
                    value
                )
        return {key: float(value) for key, value in gauges.items() if value is not None}

    def speeds(self, before: Meter, now: Meter) -> dict[Key, float]:
        """Gauges of this worker's speed between two readings; empty without a step."""
        steps = now.steps - before.steps
        if not steps:
            return {}
        work = now.step_seconds - before.step_seconds
        wait = now.data_seconds - before.data_seconds + now.cache_seconds - before.cache_seconds
        spent = max(work + wait, 1e-9)
        return {
            self.key("raykd_images_per_second"): (now.images - before.images) / spent,
            self.key("raykd_step_seconds"): work / steps,
            self.key("raykd_data_wait_share"): wait / spent,
        }


def increments_of(experiment: str, before: Meter, now: Meter) -> dict[Key, float]:
    """Increments of the counters between two readings; unchanged counters are left out."""
    increments = {}
    for field, name, result in _COUNTED:
        more = getattr(now, field) - getattr(before, field)
        if more > 0:
            tags = {"experiment": experiment} | ({"result": result} if result else {})
            increments[name, tuple(tags.items())] = more
    return increments
