"""Population based training: a trial as a chain of short students, each after another's.

Jaderberg et al. 2017, arXiv 1711.09846. A generation is a student of some epochs that goes on after
the one before it. When PBT copies a better trial, the next student starts from that trial's weights
with perturbed hyperparameters. So the result is a recipe like any other: the schedule that was
found can be trained again, bit for bit.

If the driver is lost, trials that are not finished begin again with their first draws, as a
population of their own. Students that were made stay in the store and are found again by recipe.
"""

import tempfile
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Checkpoint
from ray.tune.schedulers import PopulationBasedTraining

from raykd.config.search_space import Domain, Space, check_generation
from raykd.launch.sweep.trial import Brief, last_report, make, open_sheet
from raykd.recipes import StudentRun
from raykd.storage.store import read_json, write_json

_RECIPE = "recipe.json"  # the content of a checkpoint of Tune's: the last student, by its recipe


def run_generations(config: dict[str, Any], brief: Brief) -> None:
    """Train one student after the other, each reported as a generation: the function of a trial."""
    with open_sheet(config, brief) as sheet:
        store = brief.store()
        before, done = _last_generation()
        sheet.update(student=before)  # a copy of a trial's last generation trains no more
        whole = brief.recipe(config, store)
        check_generation(whole)
        assert isinstance(whole, StudentRun)
        every = brief.space.sweep.generation_epochs
        optim = whole.optim.model_copy(update={"epochs": every, "warmup_epochs": 0})
        for generation in range(done, whole.optim.epochs // every):
            weights = whole.weights if before is None else None
            start = {"after": before, "weights": weights, "first_epoch": generation * every}
            student = whole.model_copy(update={"optim": optim, **start})
            make(student, brief, store, reporting=False)
            report = last_report(store, student) | {"generation": generation + 1}
            sheet.update(student=student, last=report)
            with tempfile.TemporaryDirectory() as folder:
                kept = {"student": student.plain(), "generations": generation + 1}
                write_json(Path(folder) / _RECIPE, kept, sealed=False)  # Tune moves it
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
        hyperparam_mutations={axis: tune_domain(domain) for axis, domain in domains.items()},
        quantile_fraction=space.sweep.quantile,
        custom_explore_fn=lambda config: _within(config, domains),
        log_config=False,
    )


def tune_domain(domain: Domain) -> Any:
    """A domain of numbers as Tune draws from it."""
    return getattr(tune, domain.kind)(*getattr(domain, domain.kind))


def _within(config: dict[str, Any], domains: dict[str, Domain]) -> dict[str, Any]:
    """A changed configuration, with every number brought back into its domain."""
    for axis, domain in domains.items():
        low, high = getattr(domain, domain.kind)
        value = min(max(config[axis], low), high)
        config[axis] = min(round(value), high - 1) if domain.kind == "randint" else value
    return config


def _last_generation() -> tuple[StudentRun | None, int]:
    """The student to go on after, the trial's own or a copied one, and its generations so far."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None, 0
    with checkpoint.as_directory() as folder:
        kept = read_json(Path(folder) / _RECIPE)
    student = StudentRun.read(kept["student"])
    assert isinstance(student, StudentRun)
    return student, kept["generations"]
