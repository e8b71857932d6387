"""Tune's schedulers, which stop trials early by the epochs of others."""

from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from raykd.config.experiment import Experiment, basis
from raykd.config.search_space import Space
from raykd.core.errors import ConfigError
from raykd.launch.sweep.pbt import population
from raykd.recipes import AnyStudent, StudentRun


def scheduler(experiment: Experiment, space: Space, metric: str) -> Any:
    """Tune's scheduler, which stops trials early; None without one.

    It knows the trials of this driver alone: after the loss of a driver ASHA's rungs, the median
    and the population begin again among the trials that are left.
    """
    settings = space.sweep
    if settings.scheduler == "pbt":
        return population(space, metric)
    common: dict[str, Any] = {
        "time_attr": "epochs_done",
        "metric": metric,
        "mode": settings.mode,
        "grace_period": settings.grace_epochs,
    }
    if settings.scheduler == "none":
        return None

    def rule() -> TrialScheduler:
        if settings.scheduler == "median":
            return MedianStoppingRule(**common)
        longest = max(settings.grace_epochs, *map(_epochs, experiment.runs))
        rate = settings.reduction
        return ASHAScheduler(**common, max_t=longest, reduction_factor=rate, stop_last_trials=False)

    return rule() if settings.compare == "all" else AmongAlike(rule, space)


class AmongAlike(FIFOScheduler):
    """A rule of early stopping for each method and network, which compares only their trials.

    Methods begin at different speeds: among all trials, every one of a method that starts slowly
    would be stopped at the first comparison.
    """

    def __init__(self, rule: Callable[[], TrialScheduler], space: Space) -> None:
        super().__init__()
        self._rule, self._space = rule, space
        self._rules: dict[tuple[str, str], TrialScheduler] = {}
        self._rule_of: dict[str, TrialScheduler] = {}  # by trial

    def _of(self, trial: Any) -> TrialScheduler:
        """The rule of a trial's method and network."""
        if trial.trial_id not in self._rule_of:
            key = self._key(trial)
            if key not in self._rules:
                self._rules[key] = self._rule()
            self._rule_of[trial.trial_id] = self._rules[key]
        return self._rule_of[trial.trial_id]

    def _key(self, trial: Any) -> tuple[str, str]:
        """Method and network of a trial."""
        try:
            run = basis(self._space.student(trial.config))
            return run.method.label, run.model
        except ConfigError:
            return "", ""  # the trial itself will raise the error

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take in a trial."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
        """Decide on a trial by its last epoch."""
        return self._of(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
        """Count a trial that has ended."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that failed."""
        self._of(trial).on_trial_error(tune_controller, trial)


def _epochs(run: AnyStudent) -> int:
    """The epochs of a student and of the stages before it, or the most that a search may take."""
    if isinstance(run, StudentRun):
        return run.all_epochs()
    search = run.search
    count = len(search.candidates()) if run.stages == "multi_stage" else 1
    return min(count, search.at_most or count) * search.student.optim.epochs
