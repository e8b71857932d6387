"""One trial of a sweep, in a process that Ray Tune starts: a student with all that it needs.

The trial makes whatever the store lacks, each artefact under its lock, so that no other trial makes
it too. A training goes on from its checkpoint in the store, whichever process began it, so a trial
that is started again needs no checkpoint of Tune's.
"""

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from raykd.config.experiment import Experiment, basis
from raykd.config.resolve import Digests, resolve
from raykd.config.scale import Scale, Workers, most
from raykd.config.search_space import Space
from raykd.core.errors import RaykdError, WorkFailed, of_codes
from raykd.core.record import Recipe
from raykd.launch.executor import Executor
from raykd.launch.preemption import NodeNotice
from raykd.launch.prometheus import Prometheus
from raykd.launch.sweep import trial_locks
from raykd.planning.plan import lineage
from raykd.planning.preflight import preflight
from raykd.recipes import AnyStudent, SearchedStudent, StudentRun, Training
from raykd.storage import locks
from raykd.storage.store import Store
from raykd.tasks.base import HEADINGS
from raykd.tracking.console import Terminal
from raykd.tracking.jsonl import numbers
from raykd.tracking.logger import Metrics
from raykd.training.checkpointing import Tested, read_result
from raykd.training.finite import check_metrics
from raykd.training.route_results import route_found
from raykd.training.sweep_sheets import Sheet, metric_of, read_sheet, write_sheet


@dataclass(frozen=True)
class Brief:
    """The part of a sweep's description that every trial needs."""

    name: str  # the sweep's
    session: str  # the driver's
    store_url: str
    scale: Scale
    experiment: ray.ObjectRef  # resolved, with its space
    digests: Digests  # digests of the images that the driver has read

    @property
    def space(self) -> Space:
        """The space of the experiment."""
        space = _fetch(self.experiment).space
        assert space is not None
        return space

    def store(self) -> Store:
        """The store that all trials share, and that the driver has begun to use."""
        store = Store(self.store_url, self.scale.local_gb)
        store.ensure_root(made=True)
        return store

    def student(self, config: Mapping[str, Any]) -> AnyStudent:
        """A trial's student: one of the experiment's runs, or a drawn one, not yet resolved.

        Raises `ConfigError` if drawn values do not go together.
        """
        if self.space.search:
            return self.space.student(config)
        return _fetch(self.experiment).runs[self.space.position(config)]

    def recipe(self, config: Mapping[str, Any], store: Store) -> AnyStudent:
        """A trial's resolved student, which can be made. Raises `ConfigError`."""
        student = self.student(config)
        if not self.space.search:
            return student
        # A node that lacks a tracker's package or key loses its curves, and not the trial.
        scale = self.scale.model_copy(update={"track": ()})
        drawn = replace(_fetch(self.experiment), runs=(student,), scale=scale)
        drawn = resolve(drawn, store, digests=self.digests)
        preflight(drawn, store)
        return drawn.runs[0]

    def workers(self, student: AnyStudent) -> Workers:
        """The number of workers of Ray Train for a student; 0 for the trial's own process."""
        workers = _fetch(self.experiment).workers(basis(student))
        return workers if most(workers) > 1 else 0


@functools.cache
def _fetch(experiment: ray.ObjectRef) -> Experiment:
    """The experiment, once in each process: Tune uses processes again, and grids may be large."""
    return ray.get(experiment)


def run_trial(config: dict[str, Any], brief: Brief) -> None:
    """Make a student and report its epochs: the function that Tune runs."""
    with open_sheet(config, brief) as sheet:
        store = brief.store()
        student = brief.recipe(config, store)
        sheet.update(student=student)
        make(student, brief, store)
        found = route_found(store, student)
        assert found is not None
        report = last_report(store, found)
        sheet.update(state="finished", last=report)
        tune.report(report)


def make(student: AnyStudent, brief: Brief, store: Store, *, reporting: bool = True) -> None:
    """Make a student and what it needs, in this process or with workers of Ray Train.

    With `reporting` its epochs are reported to Tune.
    """
    trial = trial_name()
    metric = metric_of(_fetch(brief.experiment))
    reports = _TuneLogger(student, metric) if reporting else None
    locks_of_sweep = trial_locks.find(brief.name)

    @contextlib.contextmanager
    def lock(recipe: Recipe, *, wait: bool = True) -> Iterator[bool]:
        """Among the trials first, then as any other process has it."""
        folder = store.path(recipe)
        artefact = f"{folder.parent.name}/{folder.name}"
        with trial_locks.held(locks_of_sweep, artefact, trial, wait=wait) as mine:
            if not mine:
                yield False
                return
            with locks.held(store, recipe, "maker", wait=wait) as held:
                yield held

    wide, model = brief.workers(student), basis(student).model
    executor = Executor(
        store,
        brief.scale.model_copy(update={"workers": 0, "teacher_workers": 0}),
        Terminal(quiet=True),
        name=brief.name,
        trial=trial,
        workers=lambda run: wide if isinstance(run, StudentRun) and run.model == model else 0,
        lock=lock,
        notice=lambda: contextlib.closing(NodeNotice()),
        loggers=[Prometheus(brief.name, trial), *([reports] if reports else [])],
        train_callbacks=reports.callbacks if reports else lambda run: [],
        survey=False,
    )
    executor.make([student])


def trial_name() -> str:
    """The name of the trial that this process runs."""
    return str(tune.get_context().get_trial_name())


def last_report(store: Store, student: StudentRun) -> dict[str, Any]:
    """The last report of a finished student's trial, also of one that another process trained.

    Raises `WorkFailed` where an earlier version finished a student whose numbers are not finite.
    """
    result = read_result(store.path(student), Tested)
    check_metrics(student, student.optim.epochs - 1, result["last"])
    last, best = numbers(result["last"]), numbers(result["best"])
    last |= {
        f"best_{key}": value
        for key, value in best.items()
        if key in HEADINGS or key.endswith("top1")
    }
    return last | {"epochs_done": student.all_epochs(), "parameters": result["parameters"]}


class _TuneLogger:
    """Logger that reports a trial's epochs to Tune.

    The last epoch is reported when the student is in the store: a scheduler may end the trial with
    any report.
    """

    def __init__(self, student: AnyStudent, metric: str) -> None:
        self._metric = metric
        # If a search only finds the anchors of one stage, no epoch of it is the student's.
        self._whole_route = isinstance(student, SearchedStudent) and student.stages == "one_stage"
        members = basis(student).members()
        assistants = (teacher for teacher in members if isinstance(teacher, StudentRun))
        self._teachers = [run for teacher in assistants for run in lineage(teacher)]

    def begin(self, run: Training, history: Sequence[Metrics]) -> None:
        """Report nothing."""

    def epoch(self, run: Training, metrics: Metrics) -> None:
        """Report an evaluated epoch of the student, or of a stage on its way."""
        if self._is_own(run) and is_reported(run, metrics, self._metric):
            tune.report(_counted(run, metrics))

    def end(self, run: Training, result: Metrics | None) -> None:
        """Report nothing."""

    def callbacks(self, run: Training) -> list[Any]:
        """Callbacks that report the epochs of Ray Train's workers."""
        return [_TrainReports(run, self._metric)] if self._is_own(run) else []

    def _is_own(self, run: Training) -> TypeGuard[StudentRun]:
        """True if its epochs are the trial's, and not those of what the student needs."""
        if not isinstance(run, StudentRun) or run in self._teachers:
            return False
        return not self._whole_route or (run.route is not None and len(run.route.anchors) > 1)


class _TrainReports(TuneReportCallback):
    """Reports of Ray Train's workers to Tune; runs in Train's controller."""

    def __init__(self, run: StudentRun, metric: str) -> None:
        super().__init__()
        self._run, self._metric = run, metric

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Pass on rank 0's of evaluated epochs, except for the last one."""
        if is_reported(self._run, metrics[0], self._metric):
            super().after_report(run_context, [_counted(self._run, metrics[0])], checkpoint)


def is_reported(run: StudentRun, metrics: Mapping[str, Any], metric: str) -> bool:
    """True for an epoch that says how good the student is, but the last, which comes later.

    An evaluated epoch may lack the metric that trials are compared by: a probe's is not of each.
    """
    epoch = metrics["epoch"]
    said = run.optim.evaluates(epoch) and metric in numbers(metrics)
    return epoch + 1 < run.optim.epochs and said


def _counted(run: StudentRun, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers among an epoch's metrics, and the epochs so far, earlier stages included."""
    before = run.all_epochs() - run.optim.epochs
    return numbers(metrics) | {"epochs_done": before + metrics["epoch"] + 1}


class _OpenSheet:
    """A trial's sheet that is being filled in."""

    def __init__(self, store: Store, name: str, sheet: Sheet) -> None:
        self._store, self._name, self._sheet = store, name, sheet
        self._started = time.monotonic()
        write_sheet(store, name, sheet)

    def update(self, **changes: Any) -> None:
        """Write the changes."""
        seconds = time.monotonic() - self._started
        self._sheet = replace(self._sheet, seconds=seconds, **changes)
        write_sheet(self._store, self._name, self._sheet)


@contextlib.contextmanager
def open_sheet(config: dict[str, Any], brief: Brief) -> Iterator[_OpenSheet]:
    """A trial's sheet: running, or failed in the end; the caller marks it as finished.

    Tune starts a failed trial again, since its node may have been lost. A `RaykdError` would come
    again, so the trial fails at once if it has failed with one under the same driver.
    """
    trial, store = trial_name(), brief.store()
    before = read_sheet(store, brief.name, trial)
    if before is not None and before.state == "failed" and before.session == brief.session:
        raise of_codes([before.code or WorkFailed.code], before.error or "")
    ray.get(trial_locks.find(brief.name).begin.remote(trial))
    sheet = _OpenSheet(store, brief.name, Sheet(trial, dict(config), brief.session))
    try:
        yield sheet
    except RaykdError as error:
        sheet.update(state="failed", error=str(error), code=error.code)
        raise
    except Exception as error:
        text = (str(error).strip() or "no message").splitlines()[-1]
        sheet.update(error=f"{type(error).__name__}: {text}")
        raise
