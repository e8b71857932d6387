"""Population based training: a trial as a chain of short students, each after another's.

Jaderberg et al. 2017, arXiv 1711.09846. A generation is a student of some epochs that goes on after
the one before it. Where a trial takes over from a better one, its next student goes on after that
one's, with other numbers. So what comes out is a recipe like any other: the schedule that was
found can be trained again, bit for bit.
"""

import tempfile
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Checkpoint
from ray.tune.schedulers import PopulationBasedTraining

from raykd.config.search_space import Domain, Space, check_generation
from raykd.launch.sweep.trial import Brief, TrialCompany, last_report, make, sheet_of
from raykd.recipes import StudentRun
from raykd.storage.store import read_json, write_json

_RECIPE = "recipe.json"  # what a checkpoint of Tune's holds: the last student, by its recipe


def run_generations(config: dict[str, Any], brief: Brief) -> None:
    """What Tune runs: one student after the other, reported as generations."""
    with sheet_of(config, brief) as sheet:
        store = brief.store()
        before, done = _taken_over()
        sheet.update(asked=before)  # who takes over after the last generation trains no more
        asked = brief.asked(config, store)
        check_generation(asked)
        assert isinstance(asked, StudentRun)
        every = brief.space.sweep.generation_epochs
        optim = asked.optim.model_copy(update={"epochs": every, "warmup_epochs": 0})
        for generation in range(done, asked.optim.epochs // every):
            place = {"after": before, "first_epoch": generation * every}
            student = asked.model_copy(update={"optim": optim, **place})
            make(student, brief, store, TrialCompany(brief, student, reporting=False))
            sheet.update(asked=student)
            with tempfile.TemporaryDirectory() as folder:
                kept = {"student": student.plain(), "generations": generation + 1}
                write_json(Path(folder) / _RECIPE, kept, sealed=False)  # Tune moves it
                report = last_report(store, student) | {"generation": generation + 1}
                tune.report(report, checkpoint=Checkpoint.from_directory(folder))
            before = student
        sheet.update(state="finished")


def population(space: Space, metric: str) -> PopulationBasedTraining:
    """The scheduler that lets trials take over from better ones."""
    domains = {axis: domain for axis, domain in space.search.items() if domain.kind != "choice"}
    return PopulationBasedTraining(
        time_attr="generation",
        metric=metric,
        mode=space.sweep.mode,
        perturbation_interval=1,
        hyperparam_mutations={axis: drawn(domain) for axis, domain in domains.items()},
        quantile_fraction=space.sweep.quantile,
        custom_explore_fn=lambda config: _within(config, domains),
        log_config=False,
    )


def drawn(domain: Domain) -> Any:
    """The domain as Tune draws from it."""
    if domain.choice is not None:
        return tune.choice(list(domain.choice))
    return getattr(tune, domain.kind)(*getattr(domain, domain.kind))


def _within(config: dict[str, Any], domains: dict[str, Domain]) -> dict[str, Any]:
    """A changed configuration, with every number brought back into its domain."""
    for axis, domain in domains.items():
        low, high = getattr(domain, domain.kind)
        value = min(max(config[axis], low), high)
        config[axis] = min(round(value), high - 1) if domain.kind == "randint" else value
    return config


def _taken_over() -> tuple[StudentRun | None, int]:
    """The student to go on after, a trial's own or another's, and the generations behind it."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None, 0
    with checkpoint.as_directory() as folder:
        kept = read_json(Path(folder) / _RECIPE)
    student = StudentRun.read(kept["student"])
    assert isinstance(student, StudentRun)
    return student, kept["generations"]
