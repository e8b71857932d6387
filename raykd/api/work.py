"""The work of an experiment: read, checked, carried out, gathered, shown. One function a command.

Each reads the images and weights (`resolve`), looks at the whole for what cannot be done
(`preflight`), and only then begins. What is made lies in the store, and the same call goes on where
one was stopped: by Ctrl-C, by SIGTERM (in the main thread, with a checkpoint first), or by a
failure. Errors are `raykd.RaykdError`.
"""

from collections.abc import Iterator
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from raykd import report
from raykd.api.experiment import Experiment, Student, experiment_of, plain
from raykd.api.plan import Remaining, remaining
from raykd.api.results import Results
from raykd.config import experiment as files
from raykd.config.resolve import resolve
from raykd.config.scale import Scale, Workers
from raykd.config.shorthand import record
from raykd.core.errors import ConfigError, NoRoom, Unreachable
from raykd.core.safe_names import printable_lines
from raykd.core.shutdown import terminable
from raykd.core.words import counted
from raykd.planning.plan import plan as plan_of
from raykd.recipes import StudentRun
from raykd.report.catalogue import LISTINGS, records
from raykd.storage.place import default_place
from raykd.storage.store import Store
from raykd.tracking.console import Terminal, clock
from raykd.training.inputs import serving
from raykd.training.route_results import plannable

if TYPE_CHECKING:  # Ray takes a second to import
    from raykd.api.caches import Cache
    from raykd.launch.executor import Outcome
    from raykd.launch.sweep.driver import SweepResult

# Paths are those of files.
ExperimentLike: TypeAlias = Experiment | Student | StudentRun | str | PathLike[str]
StoreLike: TypeAlias = Store | str | PathLike[str] | None


@terminable()
def run(
    experiment: ExperimentLike,
    store: StoreLike = None,
    *,
    workers: Workers | None = None,
    quiet: bool = False,
    recipe: bool = True,
) -> Results:
    """Train teachers and students that the store lacks; the results of all of them.

    experiment: an `Experiment`, one `Student`, or the path of a file. store: a folder, or its URL;
    default: $RAYKD_STORE or ./raykd-store. workers: in place of `scale.workers`; 0: this process,
    without Ray. quiet: no progress on standard error. recipe: print the first student's, in full.
    """
    from raykd.launch.executor import execute

    resolved, storage, terminal = prepared(experiment, store, workers=workers, quiet=quiet)
    if resolved.space is not None and resolved.space.search:
        raise ConfigError("experiment.search: what is drawn is for a sweep; use `raykd sweep`")
    if recipe:
        say_recipe(resolved, terminal)
    with terminal.showing():
        outcome = execute(resolved, storage, terminal)
    summary = report.gather(storage, resolved)
    page = published(summary, storage, terminal)
    reused = {kind: count for kind, count in outcome.reused.items() if count}
    if reused:
        counts = ", ".join(counted(count, kind) for kind, count in reused.items())
        terminal.say(f"reused from {storage.shown}: {counts}")
    note = "" if page is None else f"; page: {page}"
    terminal.say(f"done in {clock(outcome.seconds)}{note}")
    return Results(summary, storage, page, outcome.made, outcome.reused, outcome.seconds)


@terminable()
def sweep(
    experiment: ExperimentLike,
    store: StoreLike = None,
    *,
    fresh: bool = False,
    workers: Workers | None = None,
    quiet: bool = False,
) -> Results:
    """Go through a grid or a search with Ray Tune; the results of all trials.

    The same call goes on where a sweep was stopped; `fresh` forgets its trials, but not what they
    made. Raises at the end where trials failed: `results` has the others.
    """
    from raykd.launch.sweep.driver import raise_failures

    outcome, swept = swept_results(experiment, store, fresh=fresh, workers=workers, quiet=quiet)
    raise_failures(swept)
    return outcome


def swept_results(
    experiment: ExperimentLike,
    store: StoreLike = None,
    *,
    fresh: bool = False,
    workers: Workers | None = None,
    quiet: bool = False,
) -> "tuple[Results, SweepResult]":
    """The results of a sweep, failed trials or not, and what its driver says of it."""
    from raykd.launch.sweep.driver import sweep as sweep_of

    resolved, storage, terminal = prepared(experiment, store, workers=workers, quiet=quiet)
    say_recipe(resolved, terminal)
    swept = sweep_of(resolved, storage, terminal, fresh=fresh)
    summary = report.gather_sweep(storage, resolved)
    page = published(summary, storage, terminal)
    states = ("finished", "stopped", "failed")
    counts = ", ".join(f"{swept.count(state)} {state}" for state in states if swept.count(state))
    terminal.say(f"{counted(len(swept.sheets), 'trials')} in {clock(swept.seconds)}: {counts}")
    note = "" if page is None else f"page: {page}; "
    terminal.say(f"{note}table: {swept.results}")
    return Results(summary, storage, page, seconds=swept.seconds, grid=swept.grid), swept


@terminable()
def cache(
    experiment: ExperimentLike,
    store: StoreLike = None,
    *,
    workers: Workers | None = None,
    quiet: bool = False,
) -> "list[Cache]":
    """Train teachers and fill caches that the store lacks, but train no student.

    All caches that the experiment's students read, those of test images too.
    """
    _, caches = precomputed(experiment, store, workers=workers, quiet=quiet)
    return caches


def precomputed(
    experiment: ExperimentLike,
    store: StoreLike = None,
    *,
    workers: Workers | None = None,
    quiet: bool = False,
) -> "tuple[Outcome, list[Cache]]":
    """The outcome of `cache`, made and reused, and the caches."""
    from raykd.api.caches import Cache
    from raykd.launch.executor import execute

    resolved, storage, terminal = prepared(experiment, store, workers=workers, quiet=quiet)
    with terminal.showing():
        outcome = execute(resolved, storage, terminal, students=False)
    terminal.say(f"done in {clock(outcome.seconds)}")
    students, measured = plannable(storage, resolved.runs)
    jobs = plan_of(students, caches=measured).caches
    return outcome, [
        Cache(storage, serving(storage, job.run, job.views), job.views)
        for job in jobs
        if storage.has(job.run.teacher)  # else it is another student, which is not trained here
    ]


@terminable()
def plan(experiment: ExperimentLike, store: StoreLike = None, *, quiet: bool = False) -> Remaining:
    """The work that a run would do, with its bytes and its time on this machine, before it begins.

    Steps of every network are timed for that, but nothing is kept. Raises what `run` would refuse.
    """
    resolved, storage, _ = prepared(experiment, store, quiet=quiet)
    return remaining(resolved, storage)


@terminable()
def results(
    experiment: ExperimentLike,
    store: StoreLike = None,
    *,
    baseline: str | None = None,
    output: str | PathLike[str] | None = None,
    quiet: bool = False,
) -> Results:
    """The results of an experiment or its sweep that the store has so far; nothing is trained.

    baseline: label of the line that gains are over; default: label_only. output: the file of the
    page; default: one in the store.
    """
    resolved, storage, terminal = prepared(experiment, store, quiet=quiet)
    summary = report.gather_sweep(storage, resolved, baseline)
    if output is None:
        page = published(summary, storage, terminal)
    else:
        page = Path(output)
        report.write_page(summary, page)
    return Results(summary, storage, page)


def show(what: str, store: StoreLike = None) -> list[dict[str, Any]]:
    """A listing as `raykd show WHAT --json` has it: a mapping for each thing.

    what: "teachers", "caches", "preludes", "students" or "searches" of the store, or "methods",
    "presets", "tasks", "models" or "datasets", which an experiment can name.
    """
    if what not in LISTINGS:
        raise ConfigError(f"show: expected one of {', '.join(LISTINGS)}, got {what!r}")
    return records(what, store_of(store))


def prepared(
    experiment: ExperimentLike,
    store: StoreLike = None,
    *,
    workers: Workers | None = None,
    quiet: bool = False,
) -> tuple[files.Experiment, Store, Terminal]:
    """The experiment with its data read, its store, and a console for progress."""
    parsed, terminal = experiment_of(experiment).parsed, Terminal(quiet=quiet)
    if workers is not None:
        scale = parsed.scale.plain() | {"workers": plain(workers)}
        parsed = replace(parsed, scale=record(Scale, scale, "experiment.scale"))
    storage = store_of(store, parsed.scale.local_gb)
    return resolve(parsed, storage, terminal.say), storage, terminal


def store_of(place: StoreLike, local_gb: float | None = None) -> Store:
    """The store at a place; None: $RAYKD_STORE, or ./raykd-store."""
    if isinstance(place, Store):
        return place
    return Store(default_place() if place is None else str(place), local_gb)


def published(summary: report.Report, store: Store, terminal: Terminal) -> Path | None:
    """Write the page of a report into the store; its path, or None after a message with the reason.

    A store that can only be read has its tables all the same.
    """
    try:
        return report.publish(summary, store)
    except (NoRoom, Unreachable) as error:
        terminal.say(f"no page is written: {error}")
        return None


def say_recipe(experiment: files.Experiment, terminal: Terminal) -> None:
    """Show the experiment in full: the first student, and the keys in which the others differ."""
    if not experiment.runs:
        raise ConfigError("experiment.grid: no student is left")
    count, first = len(experiment.runs), files.basis(experiment.runs[0]).plain()
    terminal.say(f"{experiment.name}: {counted(count, 'students')}; the first one's recipe:")
    for teacher in _given(first):
        for key in _OF_TRAINING:
            teacher.pop(key, None)
    text = yaml.safe_dump(first, sort_keys=False, default_flow_style=None, width=100)
    text = printable_lines(text.rstrip())
    terminal.console.print(text, markup=False, highlight=False, soft_wrap=True, style="dim")


_OF_TRAINING = ("optim", "label_smoothing", "precision", "seed", "save_every", "refresh_statistics")


def _given(recipe: Any) -> Iterator[dict[str, Any]]:
    """The given teachers in a plain recipe, which are not trained."""
    if not isinstance(recipe, dict):
        return
    for teacher in (recipe.get("teacher"), *(recipe.get("panel") or ()), recipe.get("after")):
        yield from _given(teacher)
    if recipe.get("weights") is not None and recipe.get("fine_tune") is False:
        yield recipe
