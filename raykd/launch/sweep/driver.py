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
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune

from raykd.config.experiment import Experiment
from raykd.config.resolve import Digests, portable, resolve
from raykd.core.errors import ConfigError, NoRoom, RaykdError, Unreachable, WorkFailed, of_codes
from raykd.launch.cluster import connected
from raykd.launch.executor import execute
from raykd.launch.sweep import leases, signed, tune_storage
from raykd.launch.sweep.pbt import run_generations
from raykd.launch.sweep.reporter import Reporter, said, short
from raykd.launch.sweep.trial import Brief, run_trial
from raykd.launch.sweep.tune_setup import (
    check_searcher,
    concurrent,
    metric_of,
    parameters,
    resources,
    scheduler,
    searcher,
    trials_of,
)
from raykd.planning.preflight import preflight
from raykd.recipes import StudentRun
from raykd.storage.store import Store
from raykd.tracking.console import Teller
from raykd.training.sweep_sheets import (
    Sheet,
    folder_of,
    forget,
    read_sheets,
    sweep_name,
    write_results,
)

_SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "4",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's page of Ray Train
}


_DECISIVE = ("run.teacher", "run.data", "run.assistants", "run.rco", "run.route")


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
    again, with the limits on trials at a time and failures that it began with. `fresh` forgets its
    trials, though not what they made. Failed trials are told by `raise_failures`; a sweep that was
    stopped ends with `KeyboardInterrupt`.
    """
    teller, started = teller or Teller(), time.monotonic()
    if experiment.space is None:
        raise ConfigError("this experiment has no space; read it from a file or text")
    check_searcher(experiment.space)
    for key, value in _SETTINGS.items():
        os.environ.setdefault(key, value)
    digests: Digests = {}
    experiment = resolve(experiment, store, teller.say, digests)
    preflight(experiment, store)
    name = sweep_name(experiment)
    experiment = portable(experiment, store)
    space = experiment.space
    assert space is not None
    total = trials_of(space)
    logs = store.root / "tune" / name
    if fresh:
        for folder in (logs, folder_of(store, name)):
            store.remove(folder)
    store.stand()
    session = secrets.token_hex(4)
    signed.key(make=True)
    with connected(experiment.scale, teller.say):
        _make_shared(experiment, store, teller)
        brief = Brief(
            name=name,
            session=session,
            place=store.url,
            space=space,
            scale=experiment.scale,
            where=experiment.where,
            digests=digests,
        )
        curves = f"tensorboard --logdir {store.where(logs)}"
        if _can_restore(store, logs):
            teller.say(f"going on with a sweep of {total} trials; {curves}")
        else:
            count = concurrent(experiment, space.sweep.concurrent, teller.say)
            teller.say(f"{total} trials, {count} at a time; {curves}")
        claims_actor = leases.start(name)
        try:
            with Reporter.speaking(name, teller, claims_actor, store, session, total), _quiet():
                _tuner(experiment, brief, store, logs).fit()
        finally:
            ray.kill(claims_actor)
    for sheet in read_sheets(store, name):
        if sheet.state == "running" and sheet.session != session:
            forget(store, name, sheet)  # begun just before a driver died, and proposed anew since
    sheets = tuple(read_sheets(store, name))
    swept = Swept(name, sheets, write_results(store, name), logs, time.monotonic() - started)
    if swept.count("running") or len(sheets) < total:
        raise KeyboardInterrupt  # Tune stops its trials by itself and returns
    return swept


def raise_failures(swept: Swept) -> None:
    """Raise an error where trials of a sweep failed, with a line for each.

    It has the status that the trials' errors have, else that of `WorkFailed`.
    """
    failed = [sheet for sheet in swept.sheets if sheet.state == "failed"]
    if failed:
        lines = [f"{sheet.trial} ({said(sheet.config)}): {sheet.error}" for sheet in failed]
        head = f"{len(failed)} of {len(swept.sheets)} trials failed; the others are done:"
        codes = (sheet.code or WorkFailed.code for sheet in failed)
        raise of_codes(codes, "\n".join([head, *lines]))


def _make_shared(experiment: Experiment, store: Store, teller: Teller) -> None:
    """Make teachers, assistants and caches, which belong to no trial.

    Where a search draws the teacher or the data, those come with the trials. What fails here will
    fail in the trials that need it, and in no others.
    """
    assert experiment.space is not None
    if any(axis.startswith(_DECISIVE) for axis in experiment.space.search):
        teller.say("the search draws what teachers are made of, so trials make them, one each")
        return
    scale = experiment.scale
    scale = scale.model_copy(update={"workers": scale.workers or 1})  # Ray is there in any case
    experiment = replace(experiment, scale=scale)
    teachers = (run.teacher for run in experiment.students())
    assistants = tuple(dict.fromkeys(t for t in teachers if isinstance(t, StudentRun)))
    try:
        if assistants:
            execute(replace(experiment, runs=assistants), store, teller)
        execute(experiment, store, teller, students=False)
    except (NoRoom, Unreachable):
        raise
    except RaykdError as error:
        teller.say(f"going on without what failed: {error}")


def _can_restore(store: Store, logs: Path) -> bool:
    """Whether Tune has noted which trials there are.

    Raises `CacheCorrupt` where others than this user may have written its notes.
    """
    if store.mirror is None:
        noted = any(logs.glob("experiment_state*"))
    else:
        names = (entry.name for entry in store.mirror.remote.entries(store.mirror.name(logs)))
        noted = any(Path(name).name.startswith("experiment_state") for name in names)
    place = tune_storage.marked(store, logs)
    if not (noted and tune.Tuner.can_restore(**place)):
        return False
    signed.check(place["storage_filesystem"], place["path"])
    return True


def _tuner(experiment: Experiment, brief: Brief, store: Store, logs: Path) -> tune.Tuner:
    """Tune's driver, new or where it was."""
    space, settings = brief.space, brief.space.sweep
    generations = settings.scheduler == "pbt"
    kind = run_generations if generations else run_trial
    trainable = tune.with_resources(
        tune.with_parameters(kind, brief=brief), lambda config: resources(brief, config)
    )
    axes = parameters(space)
    if _can_restore(store, logs):
        return tune.Tuner.restore(
            **tune_storage.marked(store, logs),
            trainable=trainable,
            resume_errored=True,
            param_space=axes,
        )
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
            **tune_storage.storage(tune_storage.marked(store, logs.parent)),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=experiment.scale.max_failures),
            callbacks=[Reporter(brief.name)],
        ),
    )


def _folder(trial: Any) -> str:
    """The folder of a trial in Tune's notes, by which TensorBoard names its curves."""
    words = "-".join(str(short(value)) for value in trial.evaluated_params.values())
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
