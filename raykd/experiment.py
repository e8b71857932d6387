"""Experiment files: YAML, overrides and grids, read into recipes.

data:     # where the images are; never hashed
run:      # one student, with its teacher: what determines the result
grid:     # dotted keys of `run`, each with a list of values: every combination is a student
scale:    # how the work is spread; never hashed
"""

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from raykd.data import images
from raykd.data.images import Data
from raykd.errors import ConfigError
from raykd.explain import explain
from raykd.recipes import StudentRun, TeacherRun
from raykd.record import Record
from raykd.registry import nearest
from raykd.store import Store, write_atomic

PARTS = ("data", "run", "grid", "scale")


class Where(Record):
    """Where the images are. `path` is a file or folder; None: the dataset's own downloader."""

    path: str | None = None


class Rule(Record):
    """Students whose recipe has these values (dotted keys of `run`) get that many workers."""

    match: dict[str, str | int | float | bool | None]
    workers: int = Field(ge=1)


class Scale(Record):
    """How the work is spread over machines; none of it changes what a run means."""

    workers: int = Field(default=0, ge=0)  # that train one student together; 0: here, without Ray
    teacher_workers: int | None = Field(default=None, ge=0)  # of a teacher; None: as `workers`
    rules: tuple[Rule, ...] = ()  # the first that matches a student overrides `workers`
    parallel: int | None = Field(default=None, ge=1)  # one-worker students at a time; None: all fit
    cpus: float = Field(default=1.0, gt=0)  # of each worker
    gpus: float | None = Field(default=None, ge=0)  # of each worker; None: 1 where there are GPUs
    checkpoint_seconds: float = Field(default=30.0, ge=0)  # between checkpoints, at epoch ends
    max_failures: int = Field(default=3, ge=0)  # of one run's workers, before it is given up
    address: str | None = None  # of a Ray cluster; None: a running one, else one of our own


class ExperimentFile(Record):
    """An experiment file before its grid is laid out; `raykd schema` writes its JSON schema."""

    data: Where = Where()
    run: StudentRun
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    scale: Scale = Scale()


@dataclass(frozen=True)
class Experiment:
    """A named set of students, and how to carry them out."""

    name: str
    runs: tuple[StudentRun, ...]
    scale: Scale
    where: Where = field(default_factory=Where)

    def workers(self, run: StudentRun) -> int:
        """How many workers train a student together."""
        for rule in self.scale.rules:
            if all(_value_at(run.plain(), key) == value for key, value in rule.match.items()):
                return rule.workers
        return self.scale.workers

    def teacher_workers(self, teacher: TeacherRun) -> int:
        """How many workers train a teacher together; given weights are work for one at most."""
        given = self.scale.teacher_workers
        workers = self.scale.workers if given is None else given
        return workers if teacher.weights is None else min(workers, 1)


def load(path: Path, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment in a YAML file, with `key=value` overrides such as `run.seed=3`.

    Raises `ConfigError`, with every mistake on a line of its own.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text, and so no experiment file") from error
    return parse(text, path.stem, overrides)


def parse(text: str, name: str, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment in YAML text."""
    tree = _yaml(text)
    if not isinstance(tree, dict):
        raise ConfigError("experiment: expected the keys run, grid, scale and data")
    for override in overrides:
        _override(tree, override)
    for key in tree:
        if key not in PARTS:
            raise ConfigError(
                f"experiment.{key}: no such key"
                + (nearest(str(key), PARTS) or f"; there are: {', '.join(PARTS)}")
            )
    if not isinstance(tree.get("run"), dict):
        raise ConfigError("experiment.run: this key must be given, with a model and its data")
    where = _record(Where, tree.get("data") or {}, "experiment.data")
    scale = _record(Scale, tree.get("scale") or {}, "experiment.scale")
    grid = tree.get("grid") or {}
    if not isinstance(grid, dict):
        raise ConfigError("experiment.grid: expected keys of run, each with a list of values")
    runs = tuple(_student(run) for run in _laid_out(tree["run"], grid))
    for rule in scale.rules:
        for key in rule.match:
            if not any(_has(run.plain(), key) for run in runs):
                raise ConfigError(f"experiment.scale.rules: {key}: no student has such a key")
    return Experiment(name, runs, scale, where)


def resolve(
    experiment: Experiment, store: Store, say: Callable[[str], None] = lambda text: None
) -> Experiment:
    """The experiment with what only files can tell: digests, classes, sizes, weights."""
    path = experiment.where.path
    root = Path(path).expanduser() if path is not None else None
    digests: dict[tuple[str, int | None], str] = {}  # files are read once, however many recipes

    def data(value: Data) -> Data:
        source = (value.name, value.resize)
        if source not in digests:
            say(f"reading the images of {value.name!r}" + (f" from {root}" if root else ""))
            digests[source] = images.read(store, value, root).digest
        if not value.digest:
            value = value.model_copy(update={"digest": digests[source]})
        return images.read(store, value, root)

    def student(run: StudentRun) -> StudentRun:
        teacher = run.teacher
        if teacher is not None:
            weights = _imported(store, teacher.weights)
            own = _normalised(teacher.model, weights, data(teacher.data), teacher.data)
            teacher = teacher.model_copy(update={"data": own, "weights": weights})
        run = run.model_copy(update={"data": data(run.data), "teacher": teacher})
        if teacher is not None and teacher.data.classes != run.data.classes:
            raise ConfigError(
                f"experiment.run.teacher: it knows {teacher.data.classes} classes, "
                f"the student's data have {run.data.classes}"
            )
        return run

    return replace(experiment, runs=tuple(student(run) for run in experiment.runs))


def _imported(store: Store, weights: str | None) -> str | None:
    """Weights as a recipe names them: a file is copied into the store and named by its digest."""
    if weights is None or weights.startswith("sha256:"):
        return weights
    if not weights.endswith((".safetensors", ".pt", ".pth")):
        return weights
    try:
        data = Path(weights).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(
            f"experiment.run.teacher.weights: {weights}: cannot be read ({error.strerror})"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    kept = store.root / "weights" / (digest + Path(weights).suffix)
    if not kept.is_file():
        write_atomic(kept, data)
    return f"sha256:{digest}{Path(weights).suffix}"


def _normalised(model: str, weights: str | None, read: Data, given: Data) -> Data:
    """A teacher's data with the normalisation that its published weights expect."""
    library, slash, name = model.partition("/")
    if not slash or weights is None or weights.startswith("sha256:"):
        return read
    from raykd.models import imagenet  # torchvision takes seconds to import

    mean, std = imagenet.preprocessing(library, name, weights)
    return read.model_copy(update={"mean": given.mean or mean, "std": given.std or std})


def _student(tree: dict[str, Any]) -> StudentRun:
    """One student, with the shorthands of the file written out."""
    teacher = tree.get("teacher")
    if isinstance(tree.get("method"), str):
        tree["method"] = {"name": tree["method"]}
    if isinstance(teacher, dict) and "data" not in teacher and "data" in tree:
        teacher["data"] = tree["data"]  # the teacher learnt from what the student learns from
    return _record(StudentRun, tree, "experiment.run")


def _record(model: Any, tree: Any, place: str) -> Any:
    """A record of a class, or a `ConfigError` that names every wrong key."""
    try:
        return model.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise explain(error, model, place) from error
    except TypeError as error:
        raise ConfigError(f"{place}: {error}; quote the value, or write a plain number") from error


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key that is given twice is an error, and 1e-4 is a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        # A merge (`<<: *defaults`) brings values that the mapping's own keys may replace.
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=deep) for key in own]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise ConfigError(f"experiment: {key!r} is given twice in the part at line {line}")
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot and a sign, as in 1.0e-4. Quoted text, such as a digest, stays text.
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+\Z")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"experiment: not YAML: {error}") from error


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one `key=value` in the file's tree; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: expected key=value, such as run.seed=3")
    value = _yaml(text)
    part, _, inner = key.partition(".")
    if part not in PARTS:
        raise ConfigError(f"{key}: no such key{nearest(part, PARTS) or '; begin with run.'}")
    if not inner:
        tree[part] = value
    elif part == "grid":
        tree["grid"] = {**(tree.get("grid") or {}), inner: value}
    elif part == "run" and any(_within(inner, str(axis)) for axis in tree.get("grid") or {}):
        raise ConfigError(f"{key}: the grid varies this key; override grid.{key}=[...] instead")
    else:
        _put(tree, key, value)


def _within(key: str, axis: str) -> bool:
    """Whether a grid axis (a dotted key that begins with run.) sets this key of run."""
    axis = axis.removeprefix("run.")
    return key == axis or key.startswith(axis + ".")


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; `method: kd` on its way stands for `method: {name: kd}`."""
    *path, last = key.split(".")
    for step in path:
        inner = tree.get(step)
        if step == "method" and isinstance(inner, str):
            inner = {"name": inner}
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {step!r} is {inner!r}, which has no keys")
        tree[step] = inner
        tree = inner
    tree[last] = value


def _laid_out(run: dict[str, Any], grid: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """One tree per combination of the grid's values, the last axis running fastest."""
    for axis, values in grid.items():
        if not str(axis).startswith("run."):
            raise ConfigError(
                f"experiment.grid.{axis}: a grid varies keys of run, such as run.seed"
            )
        if not isinstance(values, list) or not values:
            raise ConfigError(f"experiment.grid.{axis}: expected a list of values, got {values!r}")
    for values in itertools.product(*grid.values()):
        tree = {"run": copy.deepcopy(run)}
        for axis, value in zip(grid, values, strict=True):
            _put(tree, axis, copy.deepcopy(value))
        yield tree["run"]


def _value_at(plain: Any, key: str) -> Any:
    """The value at a dotted key that begins with run.; None where there is none."""
    for step in key.removeprefix("run.").split("."):
        plain = plain.get(step) if isinstance(plain, dict) else None
    return plain


def _has(plain: Any, key: str) -> bool:
    *path, last = key.removeprefix("run.").split(".")
    for step in path:
        plain = plain.get(step) if isinstance(plain, dict) else None
    return isinstance(plain, dict) and last in plain
