"""One trial of a sweep, in a process that Ray Tune starts: a student with all that it needs.

The trial makes whatever the store lacks, each thing under a claim, so that no other trial makes it
too. A training goes on from its checkpoint in the store, whoever began it, so a trial that is
started again needs no checkpoint of Tune's.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from raykd.config.experiment import Experiment, Where, basis
from raykd.config.resolve import Digests, resolve
from raykd.config.scale import Scale, Workers, most
from raykd.config.search_space import Space
from raykd.core.errors import RaykdError, WorkFailed, of_codes
from raykd.core.record import Recipe
from raykd.core.shutdown import Notice
from raykd.launch.executor import Executor
from raykd.launch.preemption import NodeNotice
from raykd.launch.prometheus import Prometheus
from raykd.launch.sweep import leases
from raykd.planning.plan import lineage
from raykd.planning.preflight import preflight
from raykd.recipes import Asked, Sought, StudentRun, Training
from raykd.storage import locks
from raykd.storage.store import Store
from raykd.tracking.console import Teller
from raykd.tracking.jsonl import numbers
from raykd.tracking.logger import Metrics
from raykd.training.checkpointing import Tested, read_result
from raykd.training.finite import check_metrics
from raykd.training.route_results import route_found
from raykd.training.sweep_sheets import Sheet, read_sheet, write_sheet


@dataclass(frozen=True)
class Brief:
    """What every trial of a sweep is told."""

    name: str
    session: str  # of the driver
    place: str  # of the store, a folder or a URL
    space: Space
    scale: Scale
    where: Where
    digests: Digests  # of the images that the driver has read

    def store(self) -> Store:
        """The store that all trials share, and that the driver has begun to use."""
        store = Store(self.place, self.scale.local_gb)
        store.stand(made=True)
        return store

    def asked(self, config: Mapping[str, Any], store: Store) -> Asked:
        """The resolved student of a trial. Raises `ConfigError`."""
        whole = Experiment(self.name, (self.space.asked(config),), self.scale, self.where)
        return resolve(whole, store, digests=self.digests).runs[0]

    def workers(self, run: Asked) -> Workers:
        """How many workers train it; 0 for this process, which is one, too."""
        workers = Experiment(self.name, (run,), self.scale).workers(basis(run))
        return workers if most(workers) > 1 else 0


def run_trial(config: dict[str, Any], brief: Brief) -> None:
    """What Tune runs: make a student, and report its epochs."""
    with sheet_of(config, brief) as sheet:
        store = brief.store()
        asked = brief.asked(config, store)
        sheet.update(asked=asked)
        make(asked, brief, store, TrialCompany(brief, asked))
        student = route_found(store, asked)
        assert student is not None
        sheet.update(state="finished")
        tune.report(last_report(store, student))


def make(asked: Asked, brief: Brief, store: Store, company: "TrialCompany") -> None:
    """Make a student and what it needs, in this process or with workers of Ray Train."""
    wide, model = brief.workers(asked), basis(asked).model
    scale = brief.scale.model_copy(update={"workers": 0, "teacher_workers": 0, "rules": ()})
    preflight(Experiment(brief.name, (asked,), scale, brief.where), store)
    executor = Executor(
        store,
        scale,
        Teller(quiet=True),
        name=brief.name,
        trial=company.trial,
        workers=lambda run: wide if isinstance(run, StudentRun) and run.model == model else 0,
        lock=company.lock,
        notice=company.notice,
        loggers=company.loggers,
        train_callbacks=company.callbacks,
        survey=False,
    )
    executor.make([asked])


def last_report(store: Store, student: StudentRun) -> dict[str, Any]:
    """The last report of a finished student's trial, also of one that another process trained.

    Raises `WorkFailed` where an earlier version finished a student whose numbers are not finite.
    """
    result = read_result(store.path(student), Tested)
    check_metrics(student, student.optim.epochs - 1, result["last"])
    last, best = numbers(result["last"]), numbers(result["best"])
    last |= {f"best_{key}": value for key, value in best.items() if key.endswith("top1")}
    return last | {"epochs_done": student.all_epochs(), "parameters": result["parameters"]}


class TrialCompany:
    """The other trials, and Tune."""

    def __init__(self, brief: Brief, asked: Asked, *, reporting: bool = True) -> None:
        """`reporting`: whether Tune hears of epochs, too."""
        self._store = brief.store()
        self.trial = tune.get_context().get_trial_id()
        self.loggers = [Prometheus(brief.name, self.trial), TuneReports(self._is_own)]
        self._claims = leases.of(brief.name)
        self._reporting = reporting
        # Of a search that only finds the anchors of one stage, no epoch is the student's.
        self._whole_route = isinstance(asked, Sought) and asked.stages == "one_stage"
        teacher = basis(asked).teacher
        self._teachers = [*lineage(teacher)] if isinstance(teacher, StudentRun) else []

    @contextlib.contextmanager
    def lock(self, recipe: Recipe, *, wait: bool = True) -> Iterator[bool]:
        """A claim among the trials, by the name of the artefact, and then as anyone has."""
        folder = self._store.path(recipe)
        what, who = f"{folder.parent.name}/{folder.name}", str(self.trial)
        claim = leases.claimed(self._claims, what, who)
        with claim, locks.held(self._store, recipe, "maker", wait=wait) as held:
            yield held

    def notice(self) -> contextlib.AbstractContextManager[Notice]:
        """Notice that the trial's node is being drained."""
        return contextlib.closing(NodeNotice())

    def callbacks(self, run: Training) -> list[Any]:
        """Who reports the epochs that workers of Ray Train end."""
        return [PassedOn(run)] if self._is_own(run) else []

    def _is_own(self, run: Training) -> TypeGuard[StudentRun]:
        """Whether its epochs are the trial's, and not those of what it needs."""
        if not (self._reporting and isinstance(run, StudentRun)) or run in self._teachers:
            return False
        return not self._whole_route or (run.route is not None and len(run.route.anchors) > 1)


class TuneReports:
    """Logger that reports the epochs of a trial's student, and of the stages before it, to Tune.

    The last epoch is reported when the student is in the store: a scheduler may end the trial
    with any report.
    """

    def __init__(self, is_reported: Callable[[Training], TypeGuard[StudentRun]]) -> None:
        self._is_reported = is_reported

    def begin(self, run: Training, history: Sequence[Metrics]) -> None:
        """Nothing to report."""

    def epoch(self, run: Training, metrics: Metrics) -> None:
        """Report an epoch."""
        if self._is_reported(run) and metrics["epoch"] + 1 < run.optim.epochs:
            tune.report(_counted(run, metrics))

    def end(self, run: Training, result: Metrics | None) -> None:
        """Nothing: the trial reports the result."""


class PassedOn(TuneReportCallback):
    """Hands the metrics of Ray Train's workers to Tune; it lives in Train's controller."""

    def __init__(self, run: StudentRun) -> None:
        super().__init__()
        self._run = run

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Pass rank 0's on, but for the last epoch's."""
        own = _counted(self._run, metrics[0])
        if own["epoch"] + 1 < self._run.optim.epochs:
            super().after_report(run_context, [own], checkpoint)


def _counted(run: StudentRun, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers among an epoch's metrics, and the epochs done with the stages before."""
    before = run.all_epochs() - run.optim.epochs
    return numbers(metrics) | {"epochs_done": before + metrics["epoch"] + 1}


class _Open:
    """A trial's sheet that is being filled in."""

    def __init__(self, store: Store, name: str, sheet: Sheet) -> None:
        self._store, self._name, self._sheet = store, name, sheet
        self._started = time.monotonic()
        write_sheet(store, name, sheet)

    def update(self, **changes: Any) -> None:
        """Write down what changed."""
        seconds = time.monotonic() - self._started
        self._sheet = replace(self._sheet, seconds=seconds, **changes)
        write_sheet(self._store, self._name, self._sheet)


@contextlib.contextmanager
def sheet_of(config: dict[str, Any], brief: Brief) -> Iterator[_Open]:
    """A trial's sheet: running, or failed in the end; who fills it in says what is finished.

    Tune starts a failed trial again, since its node may have been lost. Our own errors would come
    again, so the trial fails at once where this driver has seen it fail before.
    """
    trial, store = tune.get_context().get_trial_id(), brief.store()
    known = read_sheet(store, brief.name, trial)
    if known is not None and known.state == "failed" and known.session == brief.session:
        raise of_codes([known.code or WorkFailed.code], known.error or "")
    ray.get(leases.of(brief.name).begin.remote(trial))
    sheet = _Open(store, brief.name, Sheet(trial, dict(config), brief.session))
    try:
        yield sheet
    except RaykdError as error:
        sheet.update(state="failed", error=str(error), code=error.code)
        raise
    except Exception as error:
        text = (str(error).strip() or "no message").splitlines()[-1]
        sheet.update(error=f"{type(error).__name__}: {text}")
        raise
