"""Carrying out a plan: teachers, caches, preludes, students, each only if it is not there yet."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from raykd.data.images import Data, open_images
from raykd.data.order import check_batch
from raykd.experiment import Experiment
from raykd.launch.crew import Crew
from raykd.plan import plan
from raykd.progress import Teller
from raykd.recipes import TeacherRun, Training
from raykd.store import Store


@dataclass(frozen=True)
class Outcome:
    """What a call did, and what it found done."""

    made: dict[str, int]  # kind -> how many artefacts
    reused: dict[str, int]
    seconds: float


def carry_out(
    experiment: Experiment, store: Store, teller: Teller, *, students: bool = True
) -> Outcome:
    """Make every artefact of a resolved experiment that the store lacks.

    With `students` False it stops after the caches. What is finished stays finished: a call
    that was interrupted is continued by the same call.
    """
    started = time.monotonic()
    missing = [run for run in experiment.runs if not store.has(run)]
    work = plan(missing if students else experiment.runs)
    teachers = [teacher for teacher in work.teachers if not store.has(teacher)]
    everything = plan(experiment.runs)
    preludes = [prelude for prelude in work.preludes if students and not store.has(prelude)]
    made = {"teachers": len(teachers), "caches": 0, "preludes": len(preludes)}
    made["students"] = len(missing) if students else 0
    reused = {"teachers": len(everything.teachers) - len(teachers)}
    if students:
        reused["preludes"] = len(everything.preludes) - len(preludes)
        reused["students"] = len(everything.students) - len(missing)
    todo = ", ".join(f"{count} {kind}" for kind, count in made.items() if count)
    _check_batches(experiment, store, [*teachers, *preludes, *(missing if students else [])])
    teller.say(f"to train: {todo or 'nothing'}; in the store: {_counted(reused)}")
    with contextlib.ExitStack() as stack:
        crew = Crew(experiment, store, teller, stack)
        crew.train([(teacher, experiment.teacher_workers(teacher)) for teacher in teachers])
        made["caches"] = crew.precompute(work.caches)
        reused["caches"] = len(everything.caches) - made["caches"]
        if students:
            crew.train([(prelude, experiment.workers(prelude)) for prelude in preludes])
            crew.train([(run, experiment.workers(run)) for run in missing])
    return Outcome(made, reused, time.monotonic() - started)


def _check_batches(experiment: Experiment, store: Store, runs: Sequence[Training]) -> None:
    """Raise `ConfigError` where a run's batches do not suit its data or its workers."""
    sizes: dict[Data, int] = {}
    for run in runs:
        if isinstance(run, TeacherRun) and run.weights is not None:
            continue
        if run.data not in sizes:
            sizes[run.data] = len(open_images(store, run.data)[0])
        if isinstance(run, TeacherRun):
            workers = experiment.teacher_workers(run)
        else:
            workers = experiment.workers(run)
        check_batch(sizes[run.data], run.optim.batch, max(1, workers))


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())
