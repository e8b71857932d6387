"""The search space of a sweep: the parts `grid`, `search` and `sweep` of an experiment file.

The configuration of a trial is its choice on every axis. A choice that is more than a number or a
word (a method with its settings, a list of anchors) has a label, which loggers and samplers see.
"""

import copy
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from raykd.config.overrides import check_count, combinations, within
from raykd.config.shorthand import read_student, record
from raykd.core.errors import ConfigError
from raykd.core.record import Limits, Record
from raykd.core.registry import nearest
from raykd.recipes import AnyStudent, StudentRun

_Number = Annotated[float, Field(ge=-Limits.RATE, le=Limits.RATE)]
_Whole = Annotated[int, Field(ge=-Limits.SEED, le=Limits.SEED)]
Scalar = str | int | float | bool | None
METRICS = {  # metric of an epoch -> the better direction
    "top1": "max",
    "top5": "max",
    "validation_top1": "max",
    "validation_top5": "max",
    "knn_top1": "max",
    "linear_top1": "max",
    "recall_at_1": "max",
    "map": "max",
    "map_at_r": "max",
    "verification": "max",
    "cka": "max",
    "agreement": "max",
    "images_per_second": "max",
    "loss": "min",
    "test_loss": "min",
    "validation_loss": "min",
    "kl": "min",
}
_CHECKED = 256  # combinations of a grid with which every draw is checked when a file is read


class Sweep(Record):
    """Settings of a sweep. None of them changes the recipe of a student."""

    algorithm: Literal["random", "optuna"] = "random"
    """Draw of the values in `search`: independent, or by Optuna from finished trials."""
    samples: int = Field(default=1, ge=1, le=1_000_000)
    """Draws: in all with optuna, for each combination of the grid with random."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of the draws."""
    metric: str | None = None
    """Metric that compares trials; null: the task's headline, of validation images where some are
    held out.
    """
    mode: Literal["max", "min"] = "max"
    """Better direction of the metric."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "none"
    """Rule that stops trials early (asha, median) or changes them on the way (pbt)."""
    compare: Literal["alike", "all"] = "alike"
    """Trials that early stopping compares: those of one method and network, or all."""
    grace_epochs: int = Field(default=1, ge=1, le=Limits.ROWS)
    """Epochs before which no trial is stopped, for asha and median."""
    reduction: int = Field(default=3, ge=2, le=Limits.WORKERS)
    """One trial in so many goes on at each rung, for asha."""
    generation_epochs: int = Field(default=1, ge=1, le=Limits.EPOCHS)
    """Epochs between two exchanges, for pbt."""
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """Share of the trials that copies the best ones at an exchange, for pbt."""
    concurrent: int | None = Field(default=None, ge=1, le=Limits.WORKERS)
    """Trials at a time; null: as many as fit."""


class Domain(Record):
    """Values to draw from: exactly one of these."""

    uniform: tuple[_Number, _Number] | None = None
    """[low, high): a number between them, each equally likely; null: another rule."""
    loguniform: tuple[_Number, _Number] | None = None
    """[low, high): a number whose logarithm is uniform; null: another rule."""
    randint: tuple[_Whole, _Whole] | None = None
    """[low, high): a whole number, each equally likely; null: another rule."""
    choice: tuple[Any, ...] | None = None
    """Values, one of which is drawn; null: another rule."""

    @model_validator(mode="after")
    def _check(self) -> "Domain":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give one of uniform, loguniform, randint [low, high], or choice [values], "
                f"got {' and '.join(given) or 'none'}"
            )
        if self.choice is not None:
            if not self.choice:
                raise ValueError("choice needs at least one value")
            return self
        low, high = getattr(self, given[0])
        if low >= high or (self.loguniform is not None and low <= 0):
            raise ValueError(f"{given[0]} goes from a smaller to a larger number, got {low, high}")
        return self

    @property
    def kind(self) -> str:
        """Name of the field that has a value: uniform, loguniform, randint or choice."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)


@dataclass(frozen=True)
class Space:
    """The students of a sweep: a base, and the axes on which they differ."""

    base: Mapping[str, Any]  # `run` of the file
    grid: Mapping[str, list[Any]]
    search: Mapping[str, Domain] = field(default_factory=dict)
    sweep: Sweep = field(default_factory=Sweep)

    def choices(self, axis: str) -> dict[Scalar, Any]:
        """The values of an axis of choices, by their labels."""
        values = self.grid[axis] if axis in self.grid else self.search[axis].choice
        assert values is not None, f"{axis} draws numbers"
        labelled: dict[Scalar, Any] = {}
        for value in values:
            label = value if isinstance(value, Scalar) and value is not None else _label(value)
            while label in labelled:
                label = f"{label} again"
            labelled[label] = value
        return labelled

    def position(self, config: Mapping[str, Scalar]) -> int:
        """The index of a combination of the grid, where the last axis runs fastest."""
        index = 0
        for axis in self.grid:
            labels = [*self.choices(axis)]
            index = index * len(labels) + labels.index(config[axis])
        return index

    def student(self, config: Mapping[str, Scalar]) -> AnyStudent:
        """The student of one trial, from its label or number on every axis.

        Raises `ConfigError` if the values do not go together.
        """
        return read_student(self.tree(config))

    def tree(self, config: Mapping[str, Scalar]) -> dict[str, Any]:
        """The part `run` of the file with one trial's values."""
        axes = {axis: [self._value(axis, config[axis])] for axis in (*self.grid, *self.search)}
        return next(iter(combinations(copy.deepcopy(dict(self.base)), axes)))

    def _value(self, axis: str, label: Scalar) -> Any:
        """The value of a label; a number that is drawn is its own label."""
        numeric = axis in self.search and self.search[axis].choice is None
        return label if numeric else self.choices(axis)[label]


def read_space(
    run: dict[str, Any],
    grid: Mapping[str, Any],
    search: Any,
    sweep: Any,
    limit: int | None = None,
) -> Space:
    """The space of an experiment file.

    Raises `ConfigError` if a part cannot be read, or if there are more than `limit` trials.
    """
    if not isinstance(search, dict):
        raise ConfigError("experiment.search: expected keys of run, each with what to draw from")
    domains = {
        str(axis): record(Domain, domain, f"experiment.search.{axis}")
        for axis, domain in search.items()
    }
    for axis in domains:
        if not axis.startswith("run."):
            raise ConfigError(
                f"experiment.search.{axis}: a search varies keys of run, such as run.optim.lr"
            )
        for other in grid:
            if within(axis[4:], other) or within(other[4:], axis):
                raise ConfigError(
                    f"experiment.search.{axis}: the grid varies {other} already; draw whole values "
                    "of one of them with choice"
                )
    space = Space(run, grid, domains, record(Sweep, sweep, "experiment.sweep"))
    times, axes = space.sweep.samples, {} if space.sweep.algorithm == "optuna" else grid
    check_count("sweep", "draws", "trials", axes, limit, times)
    if space.sweep.scheduler == "pbt":
        _check_generations(space)
    _check_metric(space.sweep)
    _check_draws(space)
    return space


def _check_metric(sweep: Sweep) -> None:
    """Raise `ConfigError` if trials cannot be compared by the metric."""
    metric = sweep.metric
    if metric is None:
        return
    if metric not in METRICS and not metric.startswith("loss_"):
        hint = nearest(metric, METRICS) or f"; there are: {', '.join(METRICS)}"
        raise ConfigError(f"experiment.sweep.metric: no metric is called {metric!r}{hint}")
    if (METRICS.get(metric, "min"), sweep.mode) == ("min", "max"):
        raise ConfigError(f"experiment.sweep.mode: less {metric} is better; set it to min")


def _check_draws(space: Space) -> None:
    """Raise `ConfigError` if a value that can be drawn does not suit the students."""
    axes = {axis: [*space.choices(axis)] for axis in space.grid}
    examples = {axis: _examples(space, axis) for axis in space.search}
    for labels in itertools.islice(itertools.product(*axes.values()), _CHECKED):
        first = dict(zip(axes, labels, strict=True)) | {a: v[0] for a, v in examples.items()}
        for axis, values in examples.items():
            for value in values:
                try:
                    space.student(first | {axis: value})
                except ConfigError as error:
                    raise ConfigError(f"experiment.search.{axis} ({value}): {error}") from error


def _examples(space: Space, axis: str) -> list[Scalar]:
    """Values that can be drawn for an axis: all choices, or the lowest number."""
    domain = space.search[axis]
    if domain.choice is not None:
        return [*space.choices(axis)]
    return [getattr(domain, domain.kind)[0]]


def _check_generations(space: Space) -> None:
    """Raise `ConfigError` if population based training cannot search the space."""
    optim = space.base.get("optim") or {}
    if optim.get("schedule") != "constant":
        raise ConfigError(
            "experiment.sweep.scheduler: population based training finds the schedule itself, "
            "generation by generation; set run.optim.schedule: constant"
        )
    if all(domain.kind == "choice" for domain in space.search.values()):
        raise ConfigError(
            "experiment.search: population based training needs numbers to change, such as "
            "run.optim.lr: {loguniform: [0.01, 0.2]}"
        )
    epochs, every = optim.get("epochs", 240), space.sweep.generation_epochs
    if epochs % every:
        raise ConfigError(
            f"experiment.sweep.generation_epochs: {epochs} epochs are no whole number of "
            f"generations of {every}"
        )


def check_generation(run: AnyStudent) -> None:
    """Raise `ConfigError` if a student cannot be trained in a population."""
    if not isinstance(run, StudentRun) or run.route is not None or run.after is not None:
        raise ConfigError(
            "experiment.sweep.scheduler: population based training makes stages of its own; "
            "leave run.rco, run.route and run.after out"
        )
    if run.method.prelude() is not None:
        raise ConfigError(
            f"experiment.sweep.scheduler: method {run.method.label!r} trains something "
            "before each student, and population based training makes many; choose another one"
        )


def _label(value: Any) -> str:
    """The label of a value: the name of a method with its settings, else JSON."""
    if isinstance(value, dict):
        if "combine" in value and isinstance(value["combine"], list):
            return " + ".join(_label(part) for part in value["combine"])
        if "name" in value:
            rest = {key: inner for key, inner in value.items() if key != "name"}
            inside = ", ".join(f"{key}={_label(inner)}" for key, inner in rest.items())
            return f"{value['name']}({inside})" if inside else str(value["name"])
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value, separators=(",", ":"))
