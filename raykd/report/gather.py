"""An experiment's runs as the store has them, summed up.

Students that are equal but for their seed are one group. Accuracy is that after the last
epoch; the best epoch stands apart. A run that is not finished still counts among those asked for.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raykd.config.experiment import Experiment, basis
from raykd.core.record import fingerprint
from raykd.planning.plan import plan
from raykd.recipes import (
    AnyStudent,
    PreludeRun,
    Search,
    SearchedStudent,
    StudentRun,
    TeacherRun,
    Training,
)
from raykd.report import baseline as references
from raykd.report.comparison import summarise
from raykd.report.cost import cost_of
from raykd.report.labels import called, labels
from raykd.report.types import Drawn, Group, Report, RouteSearch, Run, Summary, Trial
from raykd.storage.store import Store
from raykd.tasks.base import HEADINGS
from raykd.tracking.jsonl import read_metrics
from raykd.training.checkpointing import Tested, Untested, read_result
from raykd.training.result import training_seconds
from raykd.training.route_results import (
    anchors_of,
    is_complete,
    plannable,
    read_decisions,
    route_found,
)
from raykd.training.sweep_sheets import Sheet, metric_of, with_drawn_students


def gather(
    store: Store,
    experiment: Experiment,
    trials: Iterable[Trial] = (),
    baseline: str | None = None,
    drawn: Drawn | None = None,
) -> Report:
    """The report of a resolved experiment: what the store has of its runs.

    Gains are over the students that have the labels alone and else the same settings, or over
    the line whose label is `baseline`. Raises `ConfigError` where there is no such line, and
    `CacheCorrupt` where a finished run's result cannot be read.
    """
    student_of = {run: route_found(store, run) for run in dict.fromkeys(experiment.runs)}
    routed, measured = plannable(store, experiment.runs)
    searches = experiment.searches()
    search_students = {search: _tried(store, search) for search in searches}
    work = plan(itertools.chain(routed, *search_students.values()), caches=measured)
    run_of: dict[Any, Run] = {
        recipe: _run(store, recipe) for recipe in (*work.teachers, *work.preludes, *work.students)
    }
    for run, student in student_of.items():
        run_of[run] = _sought(store, run) if student is None else run_of[student]
    lines = _alike(student_of)
    names = labels([_line(runs, student_of) for runs in lines])
    metric = next((basis(run).task.headline for run in experiment.runs), "top1")
    score = {
        run: result["last"][metric]
        for run in work.students
        if (result := run_of[run].result) is not None and metric in result["last"]
    }
    students_by_line = [[student for run in runs if (student := student_of[run])] for runs in lines]
    if baseline is None:
        reference = references.untaught(score)
    else:
        networks = [basis(runs[0]).model for runs in lines]
        named = dict(zip(zip(names, networks, strict=True), students_by_line, strict=True))
        reference = references.of_line(score, named, baseline)
    students = []
    for name, runs, routes in zip(names, lines, students_by_line, strict=True):
        pairs = [(score[run], reference(run)) for run in routes if run in score]
        gain = summarise(own - other for own, other in pairs if other is not None)
        line = _group(name, [run_of[run] for run in runs], gain, metric)
        named_score = experiment.published_of(runs[0])
        said = None if named_score is None else named_score.said()
        students.append(replace(line, published=said))
    requested = dict.fromkeys(student_of.values())
    apart = [run for run in work.students if run not in requested]
    teaching = dict.fromkeys(teacher for run in work.students for teacher in run.members())
    assistants = _alike(run for run in apart if run in teaching)
    stages = _alike(run for run in apart if run not in teaching)
    return Report(
        name=experiment.name,
        teachers=(
            *_named("teacher", [[teacher] for teacher in work.teachers], run_of, metric),
            *_named("assistant", assistants, run_of, metric),
        ),
        students=tuple(students),
        cost=cost_of(store, work, student_of, search_students, run_of),
        stages=_named("stage", stages, run_of, metric),
        searches=_searches(store, searches),
        trials=tuple(trials),
        baseline=baseline,
        metric=metric,
        drawn=drawn,
    )


def gather_sweep(store: Store, experiment: Experiment, baseline: str | None = None) -> Report:
    """The report of a resolved experiment, with the trials of its sweep, if it has any.

    Raises what `gather` does.
    """
    whole, sheets = with_drawn_students(experiment, store)
    space = experiment.space
    if space is None or not sheets:
        return gather(store, whole, baseline=baseline)
    metric, mode = metric_of(experiment), space.sweep.mode
    trials = [_trial(store, sheet, metric) for sheet in sheets]
    drawn = None
    if space.search:
        axes = {axis: domain.kind for axis, domain in space.search.items()}
        drawn = Drawn(metric, mode, axes, _best(trials, sheets, mode))
    return gather(store, whole, trials, baseline, drawn)


def _trial(store: Store, sheet: Sheet, metric: str) -> Trial:
    """One trial, with the fingerprint of its student once its route is known."""
    student = None if sheet.student is None else route_found(store, sheet.student)
    last: dict[str, Any] = dict(sheet.last or {})
    if student is not None and store.has(student):
        last |= read_result(store.path(student), Tested)["last"]
        last["epochs_done"] = student.all_epochs()
    headline = metric.removeprefix("validation_") if student is None else student.task.headline
    return Trial(
        sheet.trial,
        sheet.config,
        None if student is None else fingerprint(student),
        sheet.state,
        sheet.error,
        sheet.seconds,
        epochs=last.get("epochs_done"),
        asked=None if student is None else student.all_epochs(),
        value=last.get(metric),
        score=last.get(headline),
    )


def _best(trials: Sequence[Trial], sheets: Sequence[Sheet], mode: str) -> tuple[str, ...]:
    """Fingerprints of the best trial of each method and network, finished ones before others."""
    lines: dict[tuple[str, str], list[Trial]] = {}
    for trial, sheet in zip(trials, sheets, strict=True):
        if sheet.student is not None and trial.fingerprint and trial.value is not None:
            run = basis(sheet.student)
            lines.setdefault((called(run.method.plain()), run.model), []).append(trial)

    def place(trial: Trial) -> tuple[bool, float]:
        value = math.nan if trial.value is None else trial.value
        return trial.state != "finished", value if mode == "min" else -value

    return tuple(str(min(line, key=place).fingerprint) for line in lines.values())


def _alike(runs: Iterable[AnyStudent]) -> list[list[AnyStudent]]:
    """The runs that are equal but for their seeds, together."""
    lines: dict[AnyStudent, list[AnyStudent]] = {}
    for run in runs:
        lines.setdefault(_unseeded(run), []).append(run)
    return [*lines.values()]


def _unseeded(run: Any) -> Any:
    """A student with seed 0 throughout its stages, or the search for one; a teacher as it is."""
    if isinstance(run, SearchedStudent):
        student = _unseeded(run.search.student)
        return SearchedStudent(run.search.model_copy(update={"student": student}), run.stages)
    if not isinstance(run, StudentRun):
        return run
    return run.model_copy(update={"seed": 0, "after": _unseeded(run.after)})


def _line(
    runs: Sequence[AnyStudent], student_of: Mapping[AnyStudent, StudentRun | None]
) -> dict[str, Any]:
    """The plain recipe of runs that are alike, with the search for its route.

    Without the route where searches with other seeds found other ones, or none yet.
    """
    first = runs[0]
    if not isinstance(first, SearchedStudent):
        return _unseeded(first).plain()
    routes = {_unseeded(student_of[run]) for run in runs}
    student = routes.pop() if len(routes) == 1 else None
    rco = {"name": "greedy", "stages": first.stages} | _settings(first.search)
    return (student or _unseeded(first.search.student)).plain() | {"rco": rco}


def _named(
    role: str,
    lines: Sequence[Sequence[TeacherRun | AnyStudent]],
    run_of: Mapping[Any, Run],
    metric: str,
) -> tuple[Group, ...]:
    """Groups that are no students of the experiment."""
    names = labels([_unseeded(runs[0]).plain() for runs in lines])
    return tuple(
        _group(f"{role} {name}".strip(), [run_of[run] for run in runs], None, metric)
        for name, runs in zip(names, lines, strict=True)
    )


def _run(store: Store, recipe: Training) -> Run:
    """State of a run in the store."""
    folder, result, seconds = store.path(recipe), None, None
    if store.has(recipe):
        result = read_result(folder, Untested if isinstance(recipe, PreludeRun) else Tested)
        seconds = training_seconds(store, recipe, result)
    metrics = tuple(read_metrics(folder, store if result is None else None, result))
    return Run(folder.name, recipe.seed, recipe.plain(), result, metrics, seconds=seconds)


def _sought(store: Store, run: AnyStudent) -> Run:
    """A run whose route is still to be found."""
    assert isinstance(run, SearchedStudent)
    student = run.search.student
    anchors = anchors_of(run.search, read_decisions(store, run.search))
    return Run(store.path(run.search).name, student.seed, student.plain(), None, (), anchors)


def _searches(store: Store, searches: Sequence[Search]) -> tuple[RouteSearch, ...]:
    """State of some searches in the store."""
    settings = [_settings(search) | {"name": "greedy", "stages": ""} for search in searches]
    names = labels(
        [one.student.plain() | {"rco": rco} for one, rco in zip(searches, settings, strict=True)]
    )
    decisions_of = [read_decisions(store, search) for search in searches]
    return tuple(
        RouteSearch(
            label=f"{name} {search.student.model}",
            fingerprint=store.path(search).name,
            recipe=search.plain(),
            candidates=search.candidates(),
            anchors=anchors_of(search, decisions),
            decisions=tuple(decisions),
            complete=is_complete(search, decisions),
        )
        for name, search, decisions in zip(names, searches, decisions_of, strict=True)
    )


def _settings(search: Search) -> dict[str, Any]:
    """Settings of a search, apart from its student."""
    return {key: value for key, value in search.plain().items() if key != "student"}


def _tried(store: Store, search: Search) -> list[StudentRun]:
    """The students that a search has trained and measured."""
    decisions = read_decisions(store, search)
    anchors = anchors_of(search, decisions)
    return [search.stage(anchors[: number + 1]) for number in range(len(decisions))]


def _group(label: str, runs: Sequence[Run], gain: Summary | None, metric: str) -> Group:
    """The summary of some runs that are alike."""
    results = [run.result for run in runs if run.result is not None]
    seconds = [run.seconds for run in runs if run.seconds is not None]

    def last(key: str) -> Summary | None:
        return summarise(result["last"][key] for result in results if key in result["last"])

    def median(key: str) -> float | None:
        values = [result[key] for result in results if result.get(key) is not None]
        return float(np.median(values)) if values else None

    return Group(
        label=label,
        network=runs[0].recipe["model"],
        runs=tuple(runs),
        parameters=results[0]["parameters"] if results else None,
        flops=results[0].get("flops") if results else None,
        latency_ms=median("latency_ms"),
        score=last(metric),
        best=summarise(r["best"][metric] for r in results if metric in r["best"]),
        validation=last(f"validation_{metric}"),
        agreement=last("agreement"),
        kl=last("kl"),
        gain=gain,
        images_per_second=median("images_per_second"),
        seconds=float(np.mean(seconds)) if seconds else None,
        hardware=tuple(sorted({result["hardware"] for result in results})),
        others={
            heading: value
            for name, heading in HEADINGS.items()
            if name != metric and (value := last(name)) is not None
        },
    )
