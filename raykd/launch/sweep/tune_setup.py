"""The trials of a sweep in terms of Ray Tune: configurations, proposals, resources."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.variant_generator import generate_variants

from raykd.config.experiment import Experiment, basis
from raykd.config.scale import least, most
from raykd.config.search_space import Space
from raykd.core.errors import ConfigError
from raykd.launch.capacity import await_room, fitting, resources_per_worker
from raykd.launch.sweep.pbt import tune_domain
from raykd.launch.sweep.trial import Brief
from raykd.storage.store import Store
from raykd.training.route_results import route_found
from raykd.training.sweep_sheets import Sheet


class Proposals(Searcher):
    """The trials of a sweep that are still to be run, for Tune.

    A trial is over if its sheet says that it was stopped early, or that it is finished and its
    student is in the store; all others are proposed, also those that failed. With Optuna the
    trials that are over are observations of the study, and configurations that were drawn for
    others are tried again first.

    `names` holds the names of trials that are proposed, by Tune's ids or their ends.
    """

    def __init__(
        self,
        space: Space,
        metric: str,
        store: Store,
        sheets: Sequence[Sheet],
        names: dict[str, str],
    ) -> None:
        super().__init__(metric, space.sweep.mode)
        self._names = names
        optuna = space.sweep.algorithm == "optuna"
        configs = [None] * space.sweep.samples if optuna else configurations(space)
        self.total = len(configs)
        # Earlier versions named a trial by Tune's id, which ends with the number.
        by_number = {sheet.trial.rpartition("_")[2]: sheet for sheet in sheets}
        over, waiting = [], []
        for index, config in enumerate(configs):
            number = f"{index:05d}"
            sheet = by_number.get(number)
            if sheet is None:
                waiting.append((number, config))
            elif _is_over(store, sheet):
                over.append(sheet)
            else:
                waiting.append((sheet.trial, config or sheet.config))
        self.left = len(waiting)
        self._waiting = sorted(waiting, key=lambda trial: trial[1] is None)
        self._study = _study(space, metric, over, self._waiting) if optuna else None

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial."""
        if not self._waiting:
            return Searcher.FINISHED
        self._names[trial_id], config = self._waiting.pop(0)
        return config if self._study is None else self._study.suggest(trial_id)

    def population(self) -> BasicVariantGenerator:
        """All trials at once, in a generator of Tune's: its PBT accepts no other searcher."""
        for index, (name, _) in enumerate(self._waiting):
            self._names[f"{index:05d}"] = name  # the end of the id that Tune will give it
        configs = [config for _, config in self._waiting]
        return BasicVariantGenerator(points_to_evaluate=configs)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass a trial's report on to Optuna."""
        if self._study is not None:
            self._study.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass the end of a trial on to Optuna."""
        if self._study is not None:
            self._study.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Leave an empty file: sweeps are restored from sheets alone, never by `restore`."""
        Path(checkpoint_path).touch()

    def __getstate__(self) -> dict[str, Any]:
        """Empty state: Tune pickles the searcher, and no pickle of Tune's is read."""
        return {}


def _is_over(store: Store, sheet: Sheet) -> bool:
    """True if a trial needs no more work."""
    if sheet.state != "finished" or sheet.student is None:
        return sheet.state == "stopped"
    student = route_found(store, sheet.student)
    return student is not None and store.has(student)


def configurations(space: Space) -> list[dict[str, Any]]:
    """The choice or number of every trial on every axis: the same draws for the same seed."""
    axes, random = axes_of(space), np.random.default_rng(space.sweep.seed)
    return [
        spec["config"]
        for _ in range(space.sweep.samples)
        for _, spec in generate_variants({"config": axes}, random_state=random)
    ]


def axes_of(space: Space) -> dict[str, Any]:
    """The space in Tune's terms: every label on the grid, and draws from the search."""
    grid: dict[str, Any] = {axis: tune.grid_search([*space.choices(axis)]) for axis in space.grid}
    return grid | {axis: _domain(space, axis) for axis in space.search}


def _study(
    space: Space,
    metric: str,
    over: Sequence[Sheet],
    waiting: Sequence[tuple[str, dict[str, Any] | None]],
) -> Searcher:
    """Optuna's study as it was when the last driver ended."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes: dict[str, Any] = {axis: tune.choice([*space.choices(axis)]) for axis in space.grid}
    axes |= {axis: _domain(space, axis) for axis in space.search}
    again = [config for _, config in waiting if config is not None]
    study = OptunaSearch(
        OptunaSearch.convert_search_space(axes),
        metric=metric,
        mode=space.sweep.mode,
        points_to_evaluate=again,
        # Another seed than the first driver's, or the first draws would come again.
        seed=space.sweep.seed + len(over) + len(again),
    )
    for sheet in over:
        if metric in (sheet.last or {}):
            study.add_evaluated_point(sheet.config, (sheet.last or {})[metric])
    return study


def _domain(space: Space, axis: str) -> Any:
    """An axis of the search as Tune draws from it: numbers, or labels of choices."""
    domain = space.search[axis]
    return tune.choice([*space.choices(axis)]) if domain.kind == "choice" else tune_domain(domain)


def check_searcher(space: Space) -> None:
    """Raise `ConfigError` if Optuna is needed and not installed."""
    if space.sweep.algorithm == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "experiment.sweep.algorithm: optuna is not installed; `pip install '.[optuna]'` in "
            "raykd's folder, or use algorithm: random"
        )


def resources(brief: Brief, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Resources of a trial: one worker's share, or none if Ray Train's workers hold them.

    Resources that the trial reserves are not available to its workers. Tune wants a bundle that is
    not empty, so there is a mebibyte of logical memory in it, and no CPU.
    """
    try:
        wide = most(brief.workers(brief.student(config))) > 1
    except ConfigError:
        wide = False  # the trial itself will raise the error
    if wide:
        return tune.PlacementGroupFactory([{"memory": 1 << 20}])
    return tune.PlacementGroupFactory([resources_per_worker(brief.scale)])


def concurrent(experiment: Experiment, say: Callable[[str], None]) -> int:
    """The number of trials at a time: as many as have CPUs, counting those on Ray Train whole.

    Where nodes may still be added, as many as the experiment says.
    """
    scale, space = experiment.scale, experiment.space
    narrowest = min(max(1, least(experiment.workers(basis(run)))) for run in experiment.runs)
    await_room(scale, narrowest, "a trial", say)
    fit = max(1, fitting(scale) // narrowest)
    count = (space.sweep.concurrent if space else None) or scale.parallel or fit
    return count if scale.wait_minutes else min(count, fit)
