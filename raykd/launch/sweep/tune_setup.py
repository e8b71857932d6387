"""A space and its settings in the terms of Ray Tune: axes, searchers, schedulers, resources."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule
from ray.tune.search.basic_variant import BasicVariantGenerator

from raykd.config.experiment import Experiment, basis
from raykd.config.scale import least, most
from raykd.config.search_space import Space
from raykd.core.errors import ConfigError
from raykd.launch.capacity import await_room, fitting, resources_per_worker
from raykd.launch.sweep.pbt import drawn, population
from raykd.launch.sweep.trial import Brief
from raykd.recipes import Asked, StudentRun


def parameters(space: Space) -> dict[str, Any]:
    """The space as Tune goes through it: labels of choices, and numbers."""
    whole = space.sweep.algorithm == "optuna"
    across = tune.choice if whole else tune.grid_search
    found: dict[str, Any] = {axis: across([*space.choices(axis)]) for axis in space.grid}
    for axis, domain in space.search.items():
        chosen = domain.choice is not None
        found[axis] = tune.choice([*space.choices(axis)]) if chosen else drawn(domain)
    return found


def searcher(space: Space, metric: str) -> Any:
    """Who proposes configurations."""
    settings = space.sweep
    if settings.algorithm == "random":
        return BasicVariantGenerator(random_state=settings.seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(metric=metric, mode=settings.mode, seed=settings.seed)


def check_searcher(space: Space) -> None:
    """Raise `ConfigError` where who is to propose configurations is not installed."""
    if space.sweep.algorithm == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "experiment.sweep.algorithm: optuna is not installed; `pip install '.[optuna]'` in "
            "raykd's folder, or use algorithm: random"
        )


def trials_of(space: Space) -> int:
    """How many trials there will be."""
    if space.sweep.algorithm == "optuna":
        return space.sweep.samples
    return space.sweep.samples * math.prod(len(values) for values in space.grid.values())


def scheduler(experiment: Experiment, space: Space, metric: str) -> Any:
    """Who stops trials early; None for nobody."""
    settings = space.sweep
    if settings.scheduler == "pbt":
        return population(space, metric)
    common: dict[str, Any] = {
        "time_attr": "epochs_done",
        "metric": metric,
        "mode": settings.mode,
        "grace_period": settings.grace_epochs,
    }
    if settings.scheduler == "asha":
        longest = max(settings.grace_epochs, *map(_epochs, experiment.runs))
        rate = settings.reduction
        return ASHAScheduler(**common, max_t=longest, reduction_factor=rate, stop_last_trials=False)
    return MedianStoppingRule(**common) if settings.scheduler == "median" else None


def _epochs(run: Asked) -> int:
    """The epochs of a student and of the stages before it, or the most that a search may take."""
    if isinstance(run, StudentRun):
        return run.all_epochs()
    search = run.search
    count = len(search.candidates()) if run.stages == "multi_stage" else 1
    return min(count, search.at_most or count) * search.student.optim.epochs


def metric_of(experiment: Experiment) -> str:
    """What trials are compared by: held-out images, where there are some."""
    held_out = all(run.data.validation is not None for run in _known(experiment))
    return "validation_top1" if held_out else "top1"


def resources(brief: Brief, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial holds: a worker's share, or next to nothing while Ray Train's workers do.

    What a trial holds its own workers cannot have. Tune wants a bundle that is not empty, so
    there is a mebibyte of logical memory in it, and no processor.
    """
    try:
        wide = most(brief.workers(brief.space.asked(config))) > 1
    except ConfigError:
        wide = False  # the trial will say what is wrong
    if wide:
        return tune.PlacementGroupFactory([{"memory": 1 << 20}])
    return tune.PlacementGroupFactory([resources_per_worker(brief.scale)])


def concurrent(
    experiment: Experiment, asked: int | None, say: Callable[[str], None] = lambda text: None
) -> int:
    """How many trials run at a time: as many as have processors, wide ones counted whole.

    Where nodes may come, as many as were asked for.
    """
    narrowest = min(
        (max(1, least(experiment.workers(run))) for run in _known(experiment)), default=1
    )
    await_room(experiment.scale, narrowest, "a trial", say)
    fit = max(1, fitting(experiment.scale) // narrowest)
    asked = asked or experiment.scale.parallel or fit
    return asked if experiment.scale.wait_minutes else min(asked, fit)


def _known(experiment: Experiment) -> list[StudentRun]:
    """The students whose recipes are known before anything is drawn or searched for."""
    return [basis(run) for run in experiment.runs]
