"""An experiment's runs as the store has them, summed up.

Students that are equal but for their seed are one group. Accuracy is that after the last
epoch; the best epoch is chosen on the test images, so it stands apart. A run that is not
finished still counts among those asked for.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from raykd.engine.journal import RESULT, read_metrics
from raykd.engine.prepare import serving
from raykd.errors import CacheCorrupt
from raykd.experiment import Experiment
from raykd.methods.label_only import LabelOnly
from raykd.plan import Plan, plan
from raykd.recipes import StudentRun, TeacherRun
from raykd.report.labels import labels
from raykd.report.types import Cost, Group, Report, Run, Summary
from raykd.store import Store, read_json
from raykd.teachers.manifest import read_manifest


def gather(store: Store, experiment: Experiment) -> Report:
    """The report of a resolved experiment: what the store has of its runs.

    Raises `CacheCorrupt` where a finished run's result cannot be read.
    """
    work = plan(experiment.runs)
    found = {recipe: _run(store, recipe) for recipe in (*work.teachers, *work.students)}
    top1 = {recipe: run.result["last"]["top1"] for recipe, run in found.items() if run.result}
    trained = [run for run in work.students if run in top1]
    alone = {_untaught(run): top1[run] for run in trained if isinstance(run.method, LabelOnly)}
    alike: dict[StudentRun, list[StudentRun]] = {}
    for run in work.students:
        alike.setdefault(run.model_copy(update={"seed": 0}), []).append(run)
    students = []
    for label, runs in zip(labels([run.plain() for run in alike]), alike.values(), strict=True):
        taught = [run for run in runs if run in top1 and not isinstance(run.method, LabelOnly)]
        pairs = [(top1[run], alone.get(_untaught(run))) for run in taught]
        gain = summarise(own - other for own, other in pairs if other is not None)
        students.append(_group(label, [found[run] for run in runs], gain))
    names = labels([teacher.plain() for teacher in work.teachers])
    teachers = [
        _group(f"teacher {name}".strip(), [found[teacher]], None)
        for name, teacher in zip(names, work.teachers, strict=True)
    ]
    return Report(experiment.name, tuple(teachers), tuple(students), _cost(store, work, found))


def summarise(values: Iterable[float]) -> Summary | None:
    """Mean, sample standard deviation and t interval; None of nothing."""
    array = np.array([*values], float)
    n, mean = len(array), float(array.mean()) if len(array) else 0.0
    if n < 2:
        return Summary(n, mean, None, None, None) if n else None
    from scipy.stats import t  # a second to import

    std = float(array.std(ddof=1))
    half = float(t.ppf(0.975, n - 1)) * std / n**0.5
    return Summary(n, mean, std, mean - half, mean + half)


def _run(store: Store, recipe: TeacherRun | StudentRun) -> Run:
    """What the store has of a run."""
    folder, result = store.path(recipe), None
    if store.has(recipe):
        try:
            result = read_json(folder / RESULT)
        except (OSError, ValueError) as error:
            raise CacheCorrupt(
                f"{folder / RESULT}: the result of a finished run cannot be read ({error}); "
                "remove the folder to train it again"
            ) from error
    return Run(folder.name, recipe.seed, recipe.plain(), result, tuple(read_metrics(folder)))


def _group(label: str, runs: Sequence[Run], gain: Summary | None) -> Group:
    """The summary of some runs that are alike."""
    results = [run.result for run in runs if run.result is not None]
    speeds = [r["images_per_second"] for r in results if r["images_per_second"] is not None]

    def last(key: str) -> Summary | None:
        return summarise(result["last"][key] for result in results if key in result["last"])

    return Group(
        label=label,
        network=runs[0].recipe["model"],
        runs=tuple(runs),
        parameters=results[0]["parameters"] if results else None,
        top1=last("top1"),
        best=summarise(result["best"]["top1"] for result in results),
        agreement=last("agreement"),
        kl=last("kl"),
        gain=gain,
        images_per_second=float(np.median(speeds)) if speeds else None,
        seconds=float(np.mean([r["seconds"] for r in results])) if results else None,
        hardware=tuple(sorted({result["hardware"] for result in results})),
    )


def _untaught(run: StudentRun) -> StudentRun:
    """The same training with the labels alone: what a method is compared with."""
    names = ("method", "label_weight", "teacher", "route", "source", "teacher_precision")
    fields = StudentRun.model_fields
    return run.model_copy(update={name: fields[name].default for name in names})


def _cost(store: Store, work: Plan, found: Mapping[Any, Run]) -> Cost:
    """What is in the caches, and what the finished runs took."""
    caches = dict.fromkeys(serving(store, job.run, job.views) for job in work.caches)
    manifests = [read_manifest(store.path(run)) for run in caches]
    shards = [shard for manifest in manifests if manifest for shard in manifest.shards]
    seconds = {run: one.result["seconds"] for run, one in found.items() if one.result}
    students = [run for run in work.students if run in seconds]
    served = [run for run in students if run.cached() and run.method.needs()]
    return Cost(
        forwards=sum(len(shard.part) for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        epochs=sum(run.optim.epochs for run in served),
        teacher_seconds=sum(seconds.get(run, 0.0) for run in work.teachers),
        student_seconds=sum(seconds[run] for run in students),
    )
