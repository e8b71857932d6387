"""A sweep: every student of a space as a trial of Ray Tune, from one store.

Teachers and caches that follow from the experiment are made first, with all processors; others by
the first trial that needs them. Artefacts are named by their recipes, so none is made twice, and a
sweep whose driver was killed continues when it is started again.
"""

import contextlib
import io
import logging
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raykd.config.experiment import Experiment
from raykd.config.portable import portable
from raykd.config.resolve import Digests, resolve
from raykd.core.errors import ConfigError, NoRoom, RaykdError, Unreachable, WorkFailed, of_codes
from raykd.launch.cluster import connected
from raykd.launch.executor import execute
from raykd.launch.prometheus import Prometheus
from raykd.launch.sweep import trial_locks
from raykd.launch.sweep.early_stopping import scheduler
from raykd.launch.sweep.pbt import run_generations
from raykd.launch.sweep.reporter import Reporter, in_words
from raykd.launch.sweep.trial import Brief, run_trial
from raykd.launch.sweep.tune_setup import (
    Proposals,
    axes_of,
    check_searcher,
    concurrent,
    resources,
)
from raykd.launch.train import ray_storage
from raykd.planning.preflight import preflight
from raykd.recipes import StudentRun
from raykd.storage.store import Store
from raykd.tracking.console import Terminal, rounded
from raykd.training.sweep_sheets import (
    Sheet,
    folder_of,
    metric_of,
    read_sheets,
    sweep_name,
    write_results,
)

_SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": "60",  # its cost grows with the trials, and nothing is read again
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "4",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's page of Ray Train
}


_DECISIVE = ("run.teacher", "run.data", "run.assistants", "run.rco", "run.route")


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep."""

    name: str  # folder: the experiment's name, and a digest of what it varies
    sheets: tuple[Sheet, ...]
    results: Path  # results.csv; results.arrow lies beside it
    tensorboard: Path
    seconds: float
    grid: tune.ResultGrid | None = None  # Tune's own results; None where no trial was left

    def count(self, state: str) -> int:
        """The number of trials in a state."""
        return sum(sheet.state == state for sheet in self.sheets)


def sweep(
    experiment: Experiment, store: Store, terminal: Terminal | None = None, *, fresh: bool = False
) -> SweepResult:
    """Carry out an experiment as a sweep of Ray Tune.

    A sweep that was begun in this store is continued: trials that are over are kept, failed ones
    are tried again. Only the sheets of its trials are read for that, so it may go on with another
    driver, on another machine, with other limits; schedulers begin anew, see `trials.scheduler`.
    `fresh` forgets the trials, though not the artefacts that they made. Errors of failed trials
    are raised by `raise_failures`; a sweep that was stopped ends with `KeyboardInterrupt`.
    """
    terminal, started = terminal or Terminal(), time.monotonic()
    if experiment.space is None:
        raise ConfigError("this experiment has no space; read it from a file or text")
    check_searcher(experiment.space)
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    digests: Digests = {}
    experiment = resolve(experiment, store, terminal.say, digests)
    preflight(experiment, store)
    name = sweep_name(experiment)
    experiment = portable(experiment, store)
    space, metric = experiment.space, metric_of(experiment)
    assert space is not None
    logs = store.root / "tune" / name
    if fresh:
        for folder in (logs, folder_of(store, name)):
            store.remove(folder)
    store.ensure_root()
    names: dict[str, str] = {}
    proposals = Proposals(space, metric, store, read_sheets(store, name), names)
    total, left, grid = proposals.total, proposals.left, None
    session = secrets.token_hex(4)
    with contextlib.ExitStack() as stack:
        if not left:
            terminal.say(f"all {total} trials are over")
        else:
            stack.enter_context(connected(experiment.scale, terminal.say))
            _make_shared(experiment, store, terminal)
            count = concurrent(experiment, terminal.say)
            before = f"going on with {left} of {total}" if left < total else f"{total}"
            curves = f"tensorboard --logdir {store.where(logs)}"
            terminal.say(f"{before} trials, {count} at a time; {curves}")
            locks = trial_locks.start(name)
            stack.callback(ray.kill, locks)
            held = ray.put(experiment)
            brief = Brief(name, session, store.url, experiment.scale, held, digests)
            prometheus = stack.enter_context(contextlib.closing(Prometheus(name)))
            reporter = Reporter(
                name, session, store, terminal, locks, prometheus, metric, total, over=total - left
            )
            with _quiet():
                tuner = _tuner(brief, experiment, store, proposals, names, reporter, count)
                grid = tuner.fit()
    sheets = tuple(read_sheets(store, name))
    results, seconds = write_results(store, name), time.monotonic() - started
    swept = SweepResult(name, sheets, results, logs, seconds, grid)
    if swept.count("running") or len(sheets) < total:
        raise KeyboardInterrupt  # Tune stops its trials by itself and returns
    return swept


def raise_failures(swept: SweepResult) -> None:
    """Raise an error where trials of a sweep failed, with a line for each.

    It has the status that the trials' errors have, else that of `WorkFailed`.
    """
    failed = [sheet for sheet in swept.sheets if sheet.state == "failed"]
    if failed:
        lines = [f"{sheet.trial} ({in_words(sheet.config)}): {sheet.error}" for sheet in failed]
        head = f"{len(failed)} of {len(swept.sheets)} trials failed; the others are done:"
        codes = (sheet.code or WorkFailed.code for sheet in failed)
        raise of_codes(codes, "\n".join([head, *lines]))


def _make_shared(experiment: Experiment, store: Store, terminal: Terminal) -> None:
    """Make teachers, assistants and caches, which belong to no trial.

    Where a search draws the teacher or the data, those come with the trials. What fails here will
    fail in the trials that need it, and in no others.
    """
    assert experiment.space is not None
    if any(axis.startswith(_DECISIVE) for axis in experiment.space.search):
        terminal.say("the search draws what teachers are made of, so trials make them, one each")
        return
    scale = experiment.scale
    scale = scale.model_copy(update={"workers": scale.workers or 1})  # Ray is there in any case
    experiment = replace(experiment, scale=scale)
    teachers = (teacher for run in experiment.students() for teacher in run.members())
    assistants = tuple(dict.fromkeys(t for t in teachers if isinstance(t, StudentRun)))
    try:
        if assistants:
            execute(replace(experiment, runs=assistants), store, terminal)
        execute(experiment, store, terminal, students=False)
    except (NoRoom, Unreachable):
        raise
    except RaykdError as error:
        terminal.say(f"going on without what failed: {error}")


def _tuner(
    brief: Brief,
    experiment: Experiment,
    store: Store,
    proposals: Proposals,
    names: dict[str, str],
    reporter: Reporter,
    concurrent: int,
) -> tune.Tuner:
    """Tune's driver for the trials that are left.

    Tune writes its state beside the logs, with pickles in it. It is never restored from there.
    """
    space, metric = brief.space, str(proposals.metric)
    population = space.sweep.scheduler == "pbt"
    function = run_generations if population else run_trial

    def name(trial: Any) -> str:
        trial.evaluated_params = dict(trial.config)  # TensorBoard shows them as hparams
        return names.pop(trial.trial_id.rpartition("_")[2])

    trainable = tune.with_resources(
        tune.with_parameters(function, brief=brief), lambda config: resources(brief, config)
    )
    return tune.Tuner(
        trainable,
        param_space=axes_of(space) if population else None,
        tune_config=tune.TuneConfig(
            search_alg=proposals.population() if population else proposals,
            scheduler=scheduler(experiment, space, metric),
            num_samples=proposals.left,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_name_creator=name,
            trial_dirname_creator=_log_folder,
        ),
        run_config=tune.RunConfig(
            name=brief.name,
            **ray_storage(store, store.root / "tune"),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=brief.scale.max_failures),
            callbacks=[reporter],
        ),
    )


def _log_folder(trial: Any) -> str:
    """The folder of a trial's logs, by which TensorBoard names its curves."""
    words = "-".join(str(rounded(value)) for value in trial.evaluated_params.values())
    clean = "".join(c if c.isalnum() or c in "._+=-" else "_" for c in words)
    return f"{clean[:80]}-{trial}".lstrip("-")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Tune's messages, some of which are wrong (the folder for TensorBoard)."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
