"""Experiment files: YAML, overrides and grids, read into recipes.

plugins:  # files and packages with methods, networks and more of one's own
data:     # where the images are; never hashed
run:      # one student, with its teacher: what determines the result
grid:     # dotted keys of `run`, each with a list of values: every combination is a student
search:   # dotted keys of `run`, each with numbers or values to draw from, in a sweep
sweep:    # how a sweep draws, and which trials it stops early
scale:    # how the work is spread; never hashed
published:  # scores of papers, for the report; never hashed
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from raykd.config.messages import NOWHERE, Mistakes, Places
from raykd.config.overrides import combinations, value_at
from raykd.config.published import Published
from raykd.config.scale import Scale, Workers, most
from raykd.config.search_space import Domain, Space, Sweep, check_generation, read_space
from raykd.config.shorthand import read_student, record
from raykd.config.tree import overridden, read_text, tree_of
from raykd.core.errors import ConfigError
from raykd.core.plugins import Plugin, any_loaded, plugins_of
from raykd.core.plugins import load as load_plugin
from raykd.core.record import Record
from raykd.methods import METHODS
from raykd.recipes import AnyStudent, PreludeRun, Search, SearchedStudent, StudentRun, TeacherRun
from raykd.storage.plugin_files import digests_in
from raykd.tasks import probe_of


class Where(Record):
    """Location of the images. `path` is a file or folder; None: the dataset's own downloader."""

    path: str | None = None
    """File, folder or URL of the images, or hf:owner/name; null: the dataset's own download."""
    probe: str | None = None
    """File, folder or URL of the images of the task's probe; null: as `path`."""


class ExperimentFile(Record):
    """An experiment file before its grid is laid out; `schema` has its JSON schema."""

    plugins: list[str] = Field(default_factory=list, json_schema_extra={"default": []})
    """Python files, relative to this one, or installed packages, that register methods and more."""
    data: Where = Where()
    """Place of the images; it changes no result's name."""
    run: StudentRun
    """One student with its teacher: everything that determines the result."""
    grid: dict[str, list[Any]] = Field(default_factory=dict, json_schema_extra={"default": {}})
    """Dotted keys of `run`, each with a list of values; every combination is a student."""
    search: dict[str, Domain] = Field(default_factory=dict, json_schema_extra={"default": {}})
    """Dotted keys of `run`, each with numbers or values that `raykd sweep` draws from."""
    sweep: Sweep = Sweep()
    """Settings of `raykd sweep`: number of draws, and early stopping."""
    scale: Scale = Scale()
    """Spread of the work over processes and machines; it changes no result's name."""
    published: list[Published] = Field(default_factory=list, json_schema_extra={"default": []})
    """Published scores of some students, which the report shows beside ours; first match counts."""


@dataclass(frozen=True)
class Experiment:
    """A named set of students, and how to carry them out."""

    name: str
    runs: tuple[AnyStudent, ...]  # for a search: the base alone
    scale: Scale
    where: Where = field(default_factory=Where)
    space: Space | None = None  # source of the runs: a grid, or a search that draws them
    places: Places = field(
        default_factory=dict, compare=False, repr=False
    )  # position of each key in the file
    plugins: tuple[Plugin, ...] = ()  # that its file names
    published: tuple[Published, ...] = ()  # scores of papers, for the report

    def students(self) -> tuple[StudentRun, ...]:
        """Students whose route needs no search."""
        return tuple(run for run in self.runs if isinstance(run, StudentRun))

    def searches(self) -> tuple[Search, ...]:
        """The searches that are to find the routes of the others, each once."""
        searches = (run.search for run in self.runs if isinstance(run, SearchedStudent))
        return tuple(dict.fromkeys(searches))

    def workers(self, run: StudentRun | PreludeRun) -> Workers:
        """Number of workers that train a student, its prelude or its route together."""
        for rule in self.scale.rules:
            if _matches(run, rule.match):
                return rule.workers
        return self.scale.workers

    def published_of(self, run: AnyStudent) -> Published | None:
        """The published score of a student; None where the file has none."""
        return next((one for one in self.published if _matches(basis(run), one.match)), None)

    def teacher_workers(self, teacher: TeacherRun) -> Workers:
        """Number of workers that train a teacher together; given weights take one at most."""
        workers = self.scale.teacher_workers
        workers = self.scale.workers if workers is None else workers
        return min(most(workers), 1) if teacher.is_given else workers


def load(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment in a YAML file, with `key=value` overrides such as `run.seed=3`.

    Raises `ConfigError`, with every mistake on a line of its own and where it stands.
    """
    return parse(read_text(path), path.stem, overrides, str(path))


def parse(
    text: str, name: str, overrides: Iterable[str] = (), path: str | None = None
) -> Experiment:
    """The experiment in YAML text; `path` is the file that messages about mistakes name."""
    tree, places = tree_of(text, path)
    return from_tree(tree, name, overrides, places, Path(path or "experiment").parent)


def from_tree(
    tree: dict[str, Any],
    name: str,
    overrides: Iterable[str] = (),
    places: Places = NOWHERE,
    folder: Path = Path(),
) -> Experiment:
    """The experiment that a tree of plain values describes, as YAML text is read into one.

    The overrides are written into the tree. `places` names the lines of its keys, if it is from a
    file; plugins are relative to `folder`. Raises `ConfigError`, with every mistake on a line of
    its own.
    """
    places = overridden(tree, overrides, places)
    mistakes = Mistakes(places)
    plugins = _load_plugins(tree.get("plugins"), folder, mistakes)
    grid = tree.get("grid") or {}
    where, scale = Where(), Scale()
    with mistakes.collecting():
        where = record(Where, tree.get("data") or {}, "experiment.data")
    with mistakes.collecting():
        scale = record(Scale, tree.get("scale") or {}, "experiment.scale")
    published: list[Published] = []
    stated = tree.get("published") or []
    if not isinstance(stated, list):
        mistakes.add("experiment.published: expected a list of {match, score, source}")
        stated = []
    for number, one in enumerate(stated):
        with mistakes.collecting():
            published.append(record(Published, one, f"experiment.published.{number}"))
    runs: list[AnyStudent] = []
    with mistakes.collecting():
        for run in combinations(tree["run"], grid, scale.grid_limit):
            with mistakes.collecting():
                runs.append(read_student(run))
    mistakes.raise_all()
    _check_named(tree, runs, plugins, mistakes)
    space = None
    with mistakes.collecting():
        parts = (tree.get("search") or {}, tree.get("sweep") or {})
        space = read_space(tree["run"], grid, *parts, scale.grid_limit)
        for run in runs if space.sweep.scheduler == "pbt" else ():
            check_generation(run)
    if where.probe is not None and not _may_probe(runs, space):
        mistakes.add(
            "experiment.data.probe: no student has a probe whose images these could be; add "
            "run.task: {name: features, probe: {data: {name: folder}}}, or leave it out"
        )
    for place, rules in (("scale.rules", scale.rules), ("published", published)):
        for key in (key for rule in rules for key in rule.match):
            if not any(_matches(basis(run), {key: None}, anything=True) for run in runs):
                mistakes.add(f"experiment.{place}: {key}: no student has such a key")
    mistakes.raise_all()
    return Experiment(name, tuple(runs), scale, where, space, places, plugins, tuple(published))


def _load_plugins(named: Any, folder: Path, mistakes: Mistakes) -> tuple[Plugin, ...]:
    """The plugins of a file in `folder`. Raises `ConfigError`, with every mistake."""
    if not isinstance(named, list | None):
        mistakes.add(f"experiment.plugins: expected a list, such as [mine.py], got {named!r}")
    plugins: list[Plugin] = []
    for number, name in enumerate(named if isinstance(named, list) else ()):
        try:
            if not isinstance(name, str):
                raise ConfigError(f"expected a file or a package, such as mine.py, got {name!r}")
            plugins.append(load_plugin(name, folder))
        except ConfigError as error:
            mistakes.add(f"experiment.plugins.{number}: {error}")
    mistakes.raise_all()
    return tuple(plugins)


def _check_named(
    tree: Any, runs: Iterable[AnyStudent], plugins: Iterable[Plugin], mistakes: Mistakes
) -> None:
    """Raise `ConfigError` for a plugin in use that was loaded for something else.

    Recipes among the values of a tree say which ones they use.
    """
    if not any_loaded():
        return
    named = {plugin.digest for plugin in plugins} | {*digests_in(tree)}
    for digest in {*digests_in([basis(run).plain() for run in runs])} - named:
        (other,) = plugins_of([digest])
        names = ", ".join(name for _, name, *_ in other.entries)
        mistakes.add(
            f"experiment.plugins: {names} is of the plugin {other.name}, which is loaded in this "
            f"process and not named here; add {other.place} to plugins"
        )
    mistakes.raise_all()


def _may_probe(runs: Iterable[AnyStudent], space: Space | None) -> bool:
    """True where a student has a probe, or a search may draw one."""
    tasks = [basis(run).task for run in runs]
    drawn = any(axis.startswith("run.task") for axis in (space.search if space else ()))
    return drawn or any(probe_of(task) is not None for task in tasks)


def basis(run: AnyStudent) -> StudentRun:
    """The student itself, or the one that a search trains."""
    return run.search.student if isinstance(run, SearchedStudent) else run


def _matches(
    run: StudentRun | PreludeRun, values: Mapping[str, Any], *, anything: bool = False
) -> bool:
    """True if a run has these values at these dotted keys; with `anything`, if it has the keys."""

    def equal(value: Any, expected: Any) -> bool:
        alias = (
            isinstance(expected, str)
            and expected in METHODS
            and METHODS.canonical(expected) == value
        )
        return alias or value == expected

    try:
        recipe = run.plain()
        return all(equal(value_at(recipe, k), value) or anything for k, value in values.items())
    except LookupError:
        return False
