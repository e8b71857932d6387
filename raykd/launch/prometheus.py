"""Metrics of this process for Prometheus, which Ray serves on every node's metrics port.

Ray forgets a gauge two reports after it was set (20 s, Ray 2.60), so a thread sets those of what
runs again and again. What ends, or dies, is gone from Prometheus soon after, without cleaning up.
Counters are kept by the node until it goes. Where Ray takes no metrics there are none, and nothing
fails.
"""

import atexit
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray.util.metrics import Counter, Gauge

from raykd.core.counters import METER, Meter
from raykd.launch.metric_names import COUNTERS, GAUGES, Key, TrainingLabels, increments_of
from raykd.recipes import Training
from raykd.tracking.logger import Metrics

BEAT_SECONDS = 2.0  # below what Ray waits between its reports
_LINGER_SECONDS = 30.0  # for which the last values of a training stay: Prometheus looks every 15 s


class Exporter:
    """The gauges and counters of a process, and the thread that sets them."""

    def __init__(self, meter: Meter = METER) -> None:
        self._meter = meter
        self._experiment = ""
        self._training: TrainingLabels | None = None
        self._values: dict[Key, float] = {}
        self._until: dict[Key, float] = {}  # when gauges of ended trainings are removed
        self._counted = self._measured = replace(meter)
        self._metrics: dict[str, Any] = {}  # Ray's, each made once in a process
        self._lock = threading.RLock()
        self._stopped: threading.Event | None = None

    def start(self, experiment: str) -> None:
        """Export this process's metrics from now on, under an experiment's name."""
        self._experiment = experiment
        if self._stopped is None:
            self._counted = replace(self._meter)
            self._stopped = threading.Event()
            threading.Thread(target=self._repeat, args=(self._stopped,), daemon=True).start()

    def stop(self) -> None:
        """Export nothing more; for a process that goes on without Ray."""
        with self._lock:  # not while the thread calls Ray
            if self._stopped is not None:
                self._stopped.set()
            self._stopped = None
            self._values, self._until, self._metrics = {}, {}, {}

    def begin(self, training: TrainingLabels) -> None:
        """Count steps as this training's."""
        self._training = training
        self._measured = replace(self._meter)

    def end(self, training: TrainingLabels) -> None:
        """Count steps as no training's, and remove its gauges after a while."""
        with self._lock:
            if self._training == training:  # Tune may have begun another one in this process
                self._training = None
            gone = time.monotonic() + _LINGER_SECONDS
            tag = ("trial", training.trial)
            self._until |= {key: gone for key in self._values if tag in key[1]}

    def show(self, values: Mapping[Key, float]) -> None:
        """Export gauges until their training ends."""
        with self._lock:
            self._values.update(values)
            for key in values:
                self._until.pop(key, None)

    def export(self) -> None:
        """Set every gauge and raise every counter once."""
        now = replace(self._meter)
        with self._lock:
            if self._stopped is None:
                return
            if self._training is not None and now.steps > self._measured.steps:
                self.show(self._training.speeds(self._measured, now))
                self._measured = now
            for key in [key for key, gone in self._until.items() if time.monotonic() > gone]:
                del self._values[key], self._until[key]
            for (name, tags), value in self._values.items():
                self._metric(Gauge, name, *GAUGES[name]).set(value, tags=dict(tags))
            for (name, tags), more in increments_of(self._experiment, self._counted, now).items():
                self._metric(Counter, name, *COUNTERS[name]).inc(more, tags=dict(tags))
            self._counted = now

    def _metric(self, kind: Any, name: str, text: str, tags: tuple[str, ...]) -> Any:
        if name not in self._metrics:
            self._metrics[name] = kind(name, text, tags)
        return self._metrics[name]

    def _repeat(self, stopped: threading.Event) -> None:
        try:
            while not stopped.wait(BEAT_SECONDS):
                self.export()
        except Exception:  # an error of Ray's here is no reason to lose a training
            logging.getLogger(__name__).warning("no more metrics from here", exc_info=True)


_EXPORTER = Exporter()
atexit.register(_EXPORTER.stop)


class Prometheus:
    """Logger for Prometheus; it also exports the counters of its process from its start on."""

    def __init__(
        self,
        experiment: str,
        trial: str | None = None,
        rank: int = 0,
        exporter: Exporter = _EXPORTER,
    ) -> None:
        self._experiment = experiment
        self._trial = trial
        self._rank = rank
        self._exporter = exporter
        exporter.start(experiment)

    def begin(self, run: Training, history: Sequence[Metrics]) -> None:
        """Count steps as this training's, and show how far it is."""
        self._exporter.begin(self._labels(run))
        if history:
            self.epoch(run, history[-1])

    def epoch(self, run: Training, metrics: Metrics) -> None:
        """Show an epoch's metrics."""
        self._exporter.show(self._labels(run).gauges(metrics))

    def end(self, run: Training, result: Metrics | None) -> None:
        """Remove the training's gauges after a while."""
        self._exporter.end(self._labels(run))

    def trials(self, counts: Mapping[str, int]) -> None:
        """Show how many trials of a sweep are in each state."""
        for state, count in counts.items():
            tags = (("experiment", self._experiment), ("state", state))
            self._exporter.show({("raykd_trials", tags): count})

    def close(self) -> None:
        """Export nothing more from this process."""
        self._exporter.stop()

    def _labels(self, run: Training) -> TrainingLabels:
        return TrainingLabels(run, self._experiment, self._trial, self._rank)
