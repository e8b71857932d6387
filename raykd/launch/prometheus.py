"""This process's metrics, which Ray shows to Prometheus on every node's metrics port.

Ray forgets a gauge two reports after it was set (20 s, Ray 2.60), so a thread sets those of what
goes on again and again. What ends, or dies, is gone from Prometheus soon after, and nobody has to
clean up. Counters are kept by the node until it goes.

Nothing here fails a run: where Ray takes no metrics, there are none.
"""

import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ray.util.metrics import Counter, Gauge

from raykd.core.counters import METER, Meter
from raykd.core.record import Record
from raykd.launch.metric_names import COUNTERS, GAUGES, Key, Shown, counted
from raykd.recipes import PreludeRun, StudentRun, TeacherRun

BEAT_SECONDS = 2.0  # below what Ray waits between its reports
_LINGER_SECONDS = 30.0  # for which the last values of a training stay: Prometheus looks every 15 s


class Board:
    """What is shown, and the thread that tells Ray of it."""

    def __init__(self, meter: Meter = METER) -> None:
        self._meter = meter
        self._experiment = ""
        self._training: Shown | None = None
        self._values: dict[Key, float] = {}
        self._until: dict[Key, float] = {}  # when those of what is over go
        self._counted = self._measured = replace(meter)
        self._metrics: dict[str, Any] = {}  # Ray's, each made once in a process
        self._lock = threading.Lock()
        self._ended: threading.Event | None = None

    def begin(self, experiment: str) -> None:
        """Show what this process does from now on, under an experiment's name."""
        self._experiment = experiment
        if self._ended is None:
            self._counted = replace(self._meter)
            self._ended = threading.Event()
            threading.Thread(target=self._go_on, args=(self._ended,), daemon=True).start()

    def end(self) -> None:
        """Show nothing more; for a process that goes on without Ray."""
        with self._lock:  # not while the thread speaks to Ray
            if self._ended is not None:
                self._ended.set()
            self._ended = None
            self._values, self._until, self._metrics = {}, {}, {}

    @contextlib.contextmanager
    def training(self, run: Record, trial: str | None = None, rank: int = 0) -> Iterator[None]:
        """A region in which steps belong to this run; what is no training is let through."""
        if not isinstance(run, TeacherRun | PreludeRun | StudentRun):
            yield
            return
        self._training = shown = Shown.of(run, self._experiment, trial, rank)
        self._measured = replace(self._meter)
        try:
            yield
        finally:
            with self._lock:
                if self._training is shown:  # Tune may have begun another one in this process
                    self._training = None
                gone = time.monotonic() + _LINGER_SECONDS
                tag = ("trial", shown.trial)
                self._until |= {key: gone for key in self._values if tag in key[1]}

    def told(self, metrics: Mapping[str, Any]) -> None:
        """Hear of an epoch of the training."""
        if self._training is not None:
            self.show(self._training.learnt(metrics))

    def show(self, values: Mapping[Key, float]) -> None:
        """Show some gauges until what they belong to is over."""
        with self._lock:
            self._show(values)

    def _show(self, values: Mapping[Key, float]) -> None:
        self._values.update(values)
        for key in values:
            self._until.pop(key, None)

    def tell(self) -> None:
        """Tell Ray everything once."""
        now = replace(self._meter)
        with self._lock:
            if self._ended is None:
                return
            if self._training is not None and now.steps > self._measured.steps:
                self._show(self._training.speeds(self._measured, now))
                self._measured = now
            for key in [key for key, gone in self._until.items() if time.monotonic() > gone]:
                del self._values[key], self._until[key]
            for (name, tags), value in self._values.items():
                self._metric(Gauge, name, *GAUGES[name]).set(value, tags=dict(tags))
            for (name, tags), more in counted(self._experiment, self._counted, now).items():
                self._metric(Counter, name, *COUNTERS[name]).inc(more, tags=dict(tags))
            self._counted = now

    def _metric(self, kind: Any, name: str, text: str, tags: tuple[str, ...]) -> Any:
        if name not in self._metrics:
            self._metrics[name] = kind(name, text, tags)
        return self._metrics[name]

    def _go_on(self, ended: threading.Event) -> None:
        try:
            while not ended.wait(BEAT_SECONDS):
                self.tell()
        except Exception:  # whatever Ray raises here is no reason to lose a training
            logging.getLogger(__name__).warning("no more metrics from here", exc_info=True)


BOARD = Board()
atexit.register(BOARD.end)
