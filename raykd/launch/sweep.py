"""A sweep: every student of a space as a trial of Ray Tune, from one store.

What is known to be needed is made first, by all processors; what turns out later is made by the
first trial that needs it. Artefacts are named by their recipes, so nothing is made twice, and a
sweep whose driver was killed goes on when it is started again.
"""

import contextlib
import io
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raykd.engine.sweeps import Sheet, folder_of, read_sheets, sweep_name, write_results
from raykd.errors import ConfigError, WorkFailed
from raykd.experiment import Experiment
from raykd.launch import claims
from raykd.launch.cluster import connected
from raykd.launch.generations import run_generations
from raykd.launch.reporter import Reporter, said
from raykd.launch.trial import Brief, claims_name, run_trial
from raykd.launch.tuning import concurrent, metric_of, parameters, resources, scheduler, searcher
from raykd.launch.work import carry_out
from raykd.progress import Teller
from raykd.recipes import StudentRun
from raykd.resolve import Digests, resolve
from raykd.space import Space
from raykd.store import Store

_SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "4",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's page of Ray Train
}


@dataclass(frozen=True)
class Swept:
    """What a sweep did."""

    name: str  # of its folder: the experiment's, and a digest of what it varies
    sheets: tuple[Sheet, ...]
    results: Path  # results.csv; results.arrow lies beside it
    tensorboard: Path
    seconds: float

    def count(self, state: str) -> int:
        """How many trials ended so."""
        return sum(sheet.state == state for sheet in self.sheets)


def sweep(
    experiment: Experiment, store: Store, teller: Teller | None = None, *, fresh: bool = False
) -> Swept:
    """Carry out an experiment as a sweep of Ray Tune.

    A sweep that was begun in this store goes on: finished trials are kept, failed ones are tried
    again. `fresh` forgets its trials, though not what they made. Raises `WorkFailed` where trials
    failed, when all others are through.
    """
    teller, started = teller or Teller(), time.monotonic()
    space = experiment.space
    if space is None:
        raise ConfigError("this experiment has no space; read it from a file or text")
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    digests: Digests = {}
    experiment = resolve(experiment, store, teller.say, digests)
    name = sweep_name(experiment)
    logs = store.root / "tune" / name
    if fresh:
        for folder in (logs, folder_of(store, name)):
            shutil.rmtree(folder, ignore_errors=True)
    with connected(experiment.scale, teller.say):
        if not space.search:
            _make_shared(experiment, store, teller)
        brief = Brief(
            name=name,
            session=secrets.token_hex(4),
            root=str(store.root),
            space=space,
            scale=experiment.scale,
            where=experiment.where,
            digests=digests,
        )
        claims_actor = claims.start(claims_name(name))
        at_a_time = concurrent(experiment, space.sweep.concurrent)
        teller.say(f"{_total(space)} trials, {at_a_time} at a time; tensorboard --logdir {logs}")
        with Reporter.speaking(name, teller, claims_actor, store, _total(space)), _quiet():
            _tuner(experiment, brief, logs).fit()
        ray.kill(claims_actor)
    sheets = tuple(read_sheets(store, name))
    swept = Swept(name, sheets, write_results(store, name), logs, time.monotonic() - started)
    if swept.count("running"):
        raise KeyboardInterrupt  # Tune stops its trials by itself and returns
    return swept


def raise_failures(swept: Swept) -> None:
    """Raise `WorkFailed` where trials of a sweep failed, with a line for each."""
    failed = [sheet for sheet in swept.sheets if sheet.state == "failed"]
    if failed:
        lines = [f"{sheet.trial} ({said(sheet.config)}): {sheet.error}" for sheet in failed]
        head = f"{len(failed)} of {len(swept.sheets)} trials failed; the others are done:"
        raise WorkFailed("\n".join([head, *lines]))


def _make_shared(experiment: Experiment, store: Store, teller: Teller) -> None:
    """Make teachers, assistants and caches, which belong to no trial."""
    teachers = (run.teacher for run in experiment.students())
    assistants = tuple(dict.fromkeys(t for t in teachers if isinstance(t, StudentRun)))
    if assistants:
        carry_out(replace(experiment, runs=assistants), store, teller)
    carry_out(experiment, store, teller, students=False)


def _tuner(experiment: Experiment, brief: Brief, logs: Path) -> tune.Tuner:
    """Tune's driver, new or where it was."""
    space, settings = brief.space, brief.space.sweep
    generations = settings.scheduler == "pbt"
    kind = run_generations if generations else run_trial
    trainable = tune.with_resources(
        tune.with_parameters(kind, brief=brief), lambda config: resources(brief, config)
    )
    axes = parameters(space)
    if tune.Tuner.can_restore(str(logs)):
        return tune.Tuner.restore(str(logs), trainable, resume_errored=True, param_space=axes)
    metric = settings.metric or metric_of(experiment)
    return tune.Tuner(
        trainable,
        param_space=axes,
        tune_config=tune.TuneConfig(
            search_alg=searcher(space, metric),
            scheduler=scheduler(experiment, space, metric),
            num_samples=settings.samples,
            max_concurrent_trials=concurrent(experiment, settings.concurrent),
            reuse_actors=True,
            trial_dirname_creator=_folder,
        ),
        run_config=tune.RunConfig(
            name=logs.name,
            storage_path=str(logs.parent),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=experiment.scale.max_failures),
            callbacks=[Reporter(brief.name)],
        ),
    )


def _total(space: Space) -> int:
    """How many trials there will be."""
    if space.sweep.algorithm == "optuna":
        return space.sweep.samples
    count = space.sweep.samples
    for values in space.grid.values():
        count *= len(values)
    return count


def _folder(trial: Any) -> str:
    """The folder of a trial in Tune's notes, by which TensorBoard names its curves."""
    words = "-".join(str(value) for value in trial.evaluated_params.values())
    clean = "".join(c if c.isalnum() or c in "._+=-" else "_" for c in words)
    return f"{clean[:80]}-{trial.trial_id}".lstrip("-")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Tune prints, some of which is not so (the folder for TensorBoard)."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
