"""Messages of a sweep's driver while trials come and go."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray import tune

from raykd.launch.prometheus import Prometheus
from raykd.storage.store import Store
from raykd.tasks.base import headline_of
from raykd.tracking.console import Terminal, clock, rounded
from raykd.training.sweep_sheets import SCORES, Sheet, read_sheet, write_sheet


class Reporter(tune.Callback):
    """Tune's callback that completes a trial's sheet and prints a line when it ends."""

    def __init__(
        self,
        name: str,
        session: str,
        store: Store,
        terminal: Terminal,
        trial_locks: Any,
        prometheus: Prometheus,
        metric: str,
        total: int,
        over: int,
    ) -> None:
        """`total`: trials of the sweep, `over` of which ended under earlier drivers."""
        self._name, self._session = name, session
        self._store, self._terminal, self._locks = store, terminal, trial_locks
        self._prometheus = prometheus
        self._kept = {*SCORES, "loss", "epochs_done", metric}  # numbers of a trial's last report
        self._total, self._over = total, over
        self._done = self._failed = 0  # under this driver
        self._first_end: float | None = None  # seconds; workers had been started by then

    def __getstate__(self) -> dict[str, Any]:
        """Empty state: Tune pickles its callbacks, and no pickle of Tune's is read."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Show the number of trials."""
        self._show_counts()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Free the locks of a trial whose process was lost, before it is started again."""
        self._locks.end.remote(str(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Complete the sheet of a trial that ended by itself or was stopped by the scheduler."""
        self._done += 1
        sheet = read_sheet(self._store, self._name, str(trial))
        last, how = trial.last_result or {}, ""
        if sheet is not None:
            state = sheet.state
            if state == "running":
                state, how = "stopped", f" after {last.get('epochs_done', 0)} epochs, stopped early"
            numbers = {key: value for key, value in last.items() if key in self._kept}
            seconds = max(sheet.seconds, last.get("time_total_s", 0.0))
            sheet = replace(sheet, state=state, last=numbers, seconds=seconds)
            write_sheet(self._store, self._name, sheet)
        score = headline_of(last)
        self._say(trial, f": {score}{how}" if score else how)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Complete the sheet of a trial that failed for good."""
        self._failed += 1
        # Tune would unpickle the error from the store to put it into its results.
        trial.run_metadata.pickled_error_filename = None
        sheet = read_sheet(self._store, self._name, str(trial))
        if sheet is None:  # its worker died while it was being started
            sheet = Sheet(str(trial), dict(trial.config), self._session)
        if sheet.state != "failed":
            error = sheet.error or "its worker died too often"
            where = f"more in {trial.path}/error.txt; the same command goes on"
            sheet = replace(sheet, state="failed", error=f"{error}; {where}")
            write_sheet(self._store, self._name, sheet)
        self._say(trial, f": failed: {sheet.error}")

    def _say(self, trial: Any, how: str) -> None:
        """Print a line about a trial and the time that the others will take."""
        self._locks.end.remote(str(trial))
        ended = self._done + self._failed
        left = self._total - ended - self._over
        now = time.monotonic()
        self._first_end = self._first_end or now
        seconds = (now - self._first_end) / (ended - 1) if ended > 1 else 0.0  # seconds per trial
        rest = f"; about {clock(seconds * left)} left" if left > 0 and ended > 2 else ""
        self._terminal.say(
            f"trial {ended + self._over} of {self._total}: {in_words(trial.evaluated_params)}"
            f"{how}{rest}"
        )
        self._show_counts()

    def _show_counts(self) -> None:
        """Set the gauge of the trials."""
        done = self._done + self._over
        left = self._total - done - self._failed
        self._prometheus.trials({"finished": done, "failed": self._failed, "left": left})


def in_words(config: Mapping[str, Any]) -> str:
    """A trial's choices in a line."""
    return ", ".join(f"{axis.rpartition('.')[2]}={rounded(v)}" for axis, v in config.items())
