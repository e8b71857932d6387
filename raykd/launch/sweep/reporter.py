"""What the driver of a sweep says while trials come and go."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ray import tune

from raykd.launch.prometheus import Prometheus
from raykd.storage.store import Store
from raykd.tracking.console import Teller, clock
from raykd.training.sweep_sheets import SCORES, Sheet, read_sheet, write_sheet

_KEPT = (*SCORES, "loss", "epochs_done")


@dataclass
class _Desk:
    """Who listens in this process."""

    teller: Teller
    claims: Any
    store: Store
    session: str
    total: int
    prometheus: Prometheus
    done: int = 0  # in this process
    failed: int = 0
    found: int = 0  # trials that were over before
    first_end: float | None = None  # when the first trial ended: workers were started by then


class Reporter(tune.Callback):
    """Hears of the end of every trial; Tune keeps it on disk, so it holds nothing but a name."""

    desks: dict[str, _Desk] = {}  # noqa: RUF012 - of this process, by the sweep's name

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    @contextlib.contextmanager
    def speaking(
        cls, name: str, teller: Teller, claims: Any, store: Store, session: str, total: int
    ) -> Iterator[None]:
        """Let `teller` speak of the trials of a sweep inside."""
        prometheus = Prometheus(name)
        cls.desks[name] = _Desk(teller, claims, store, session, total, prometheus)
        try:
            yield
        finally:
            prometheus.close()
            del cls.desks[name]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say how much there is, once."""
        desk = self.desks[self.name]
        if desk.done == 0 and desk.failed == 0:
            desk.found = sum(other.is_finished() for other in trials)
        self._show(desk)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended, by itself or by the scheduler."""
        desk = self.desks[self.name]
        desk.done += 1
        sheet = read_sheet(desk.store, self.name, trial.trial_id)
        last, how = trial.last_result or {}, ""
        if sheet is not None:
            state = sheet.state
            if state == "running":
                state, how = "stopped", f" after {last.get('epochs_done', 0)} epochs, stopped early"
            numbers = {key: value for key, value in last.items() if key in _KEPT}
            seconds = max(sheet.seconds, last.get("time_total_s", 0.0))
            sheet = replace(sheet, state=state, last=numbers, seconds=seconds)
            write_sheet(desk.store, self.name, sheet)
        top1 = f": top-1 {last['top1']:.2f} %" if "top1" in last else ""
        self._say(trial, f"{top1}{how}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has failed for good."""
        desk = self.desks[self.name]
        desk.failed += 1
        sheet = read_sheet(desk.store, self.name, trial.trial_id)
        if sheet is None:  # its worker died while it was being started
            sheet = Sheet(trial.trial_id, dict(trial.config), desk.session)
        if sheet.state != "failed":
            error = sheet.error or "its worker died too often"
            where = f"more in {trial.path}/error.txt; the same command goes on"
            sheet = replace(sheet, state="failed", error=f"{error}; {where}")
            write_sheet(desk.store, self.name, sheet)
        self._say(trial, f": failed: {sheet.error}")

    def _say(self, trial: Any, how: str) -> None:
        """A line about a trial, and how long the others will take."""
        desk = self.desks[self.name]
        desk.claims.end.remote(trial.trial_id)
        over = desk.done + desk.failed
        left = desk.total - over - desk.found
        now = time.monotonic()
        desk.first_end = desk.first_end or now
        rate = (now - desk.first_end) / (over - 1) if over > 1 else 0.0  # seconds a trial
        words = said(trial.evaluated_params)
        rest = f"; about {clock(rate * left)} left" if left > 0 and over > 2 else ""
        desk.teller.say(f"trial {over + desk.found} of {desk.total}: {words}{how}{rest}")
        self._show(desk)

    def _show(self, desk: _Desk) -> None:
        """Set the gauge of the trials."""
        done = desk.done + desk.found
        states = {"finished": done, "failed": desk.failed, "left": desk.total - done - desk.failed}
        desk.prometheus.trials(states)


def said(config: Mapping[str, Any]) -> str:
    """A trial's choices in a line."""
    return ", ".join(f"{axis.rpartition('.')[2]}={short(v)}" for axis, v in config.items())


def short(value: Any) -> Any:
    """A number with as many digits as a person reads."""
    return f"{value:.4g}" if isinstance(value, float) else value
