"""Experiments as Python objects: the tree of an experiment file, read and checked as one.

An object holds the keys that it was given, and nothing is checked before an `Experiment` is made
of them. Its mistakes are then the same sentences as those of a file. Values are plain ones, other
objects of this module, or records, as `raykd.methods.kd.KD(temperature=2.0)`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from raykd.api.modules import written
from raykd.config import experiment as files
from raykd.config.scale import Scale
from raykd.config.search_space import Domain, Sweep
from raykd.core.errors import ConfigError
from raykd.core.plugins import loaded
from raykd.core.record import Record
from raykd.core.words import counted
from raykd.data.transforms.augment import Augment
from raykd.methods.base import Method
from raykd.outputs.codecs import Codec
from raykd.recipes import Optim, PanelRun, StudentRun, TeacherRun
from raykd.tasks.base import Task

Keys: TypeAlias = Mapping[str, Any]
Precision = Literal["float32", "bfloat16"]


class Part:
    """Some keys of an experiment file with their values, in `tree`, as plain values."""

    def __init__(self, given: Keys, more: Keys) -> None:
        """None leaves out a key of `given`, and is null for one of `more`."""
        keys = {key: value for key, value in given.items() if value is not None} | {**more}
        self.plugins = [*dict.fromkeys(_plugins_in(keys))]  # files of the modules in it
        self.tree: dict[str, Any] = plain(keys)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        keys = ", ".join(f"{key}={value!r}" for key, value in self.tree.items())
        return f"{type(self).__name__}({keys})"


class Data(Part):
    """Images, and how they are shown: `data` of a run. Other keys of it are keywords, too.

    name: one of `raykd show datasets`. validation: share of the training images that is held out.
    limit: number of images to train on. augment: as in {"pad": 4, "flip": True}. stream: size of
    images that are decoded while training, as in {"size": 224, "resize": 256}.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        labels: Literal["classes", "none"] | None = None,
        validation: float | None = None,
        holdout: float | None = None,
        limit: int | None = None,
        augment: Augment | Keys | None = None,
        stream: Keys | None = None,
        seed: int | None = None,
        **more: Any,
    ) -> None:
        given = {
            "name": name,
            "labels": labels,
            "validation": validation,
            "holdout": holdout,
            "limit": limit,
            "augment": augment,
            "stream": stream,
            "seed": seed,
        }
        super().__init__(given, more)


class _Network(Part):
    """Some keys with a network: a name, or an `nn.Module` object with its weights."""

    def __init__(self, given: Keys, more: Keys, stages: Sequence[str] | None) -> None:
        """`given` has the keys "model" and "weights"."""
        model, weights = given["model"], given["weights"]
        if not isinstance(model, nn.Module):
            if stages is not None:
                raise ConfigError(f"stages: they split an nn.Module object, and model is {model!r}")
            super().__init__(given, more)
            return
        if weights is not None:
            raise ConfigError("weights: an nn.Module object has its own; load them into it")
        module = written(model, stages)
        super().__init__({**given, "model": module.name, "weights": module.weights}, more)
        self.plugins.append(module.plugin)


class Teacher(_Network):
    """A teacher: trained here with the labels, or with `weights` a published or given network.

    model: one of `raykd show models`, or torchvision/NAME, timm/NAME, or an `nn.Module` with its
    weights. stages: of a module, its submodules after which stages end. data: default: those of the
    student. weights: a published name, a path, or hub:owner/name. optim: its training; beside
    weights, it is fine-tuned. Other keys of `run.teacher` are keywords, too, as in
    Teacher(panel=[Teacher(...), Teacher(...)]).
    """

    def __init__(
        self,
        model: str | nn.Module | None = None,
        *,
        stages: Sequence[str] | None = None,
        weights: str | PathLike[str] | None = None,
        data: Data | Keys | None = None,
        optim: Optim | Keys | None = None,
        classes: Any = None,
        size: int | None = None,
        save_every: int | None = None,
        precision: Precision | None = None,
        seed: int | None = None,
        **more: Any,
    ) -> None:
        given = {
            "model": model,
            "weights": weights,
            "data": data,
            "optim": optim,
            "classes": classes,
            "size": size,
            "save_every": save_every,
            "precision": precision,
            "seed": seed,
        }
        super().__init__(given, more, stages)


class Student(_Network):
    """A student with its teacher, its images and its method: `run` of an experiment file.

    model: one of `raykd show models`, or torchvision/NAME, timm/NAME, or an `nn.Module` that starts
    from its weights. stages: of a module, its submodules after which stages end, such as ["layer1",
    "layer2"]; default: the children that have convolutions. teacher: a `Teacher`, or a `Student`
    that teaches as an assistant. method: a name, a mapping such as {"name": "kd",
    "temperature": 2.0}, or a record. task: "classification" (default), "features", "retrieval" or
    "faces". views: number of cached augmentations. source: "cache" or "live". Other keys of `run`
    are keywords, too.
    """

    def __init__(
        self,
        model: str | nn.Module | None = None,
        *,
        stages: Sequence[str] | None = None,
        data: Data | Keys | None = None,
        teacher: "Teacher | Student | TeacherRun | StudentRun | PanelRun | Keys | None" = None,
        method: Method | str | Keys | None = None,
        optim: Optim | Keys | None = None,
        task: Task | str | Keys | None = None,
        weights: str | PathLike[str] | None = None,
        views: int | Literal["all"] | None = None,
        source: Literal["auto", "cache", "live"] | None = None,
        codec: Codec | str | Keys | None = None,
        label_weight: Any = None,
        precision: Precision | None = None,
        teacher_precision: Precision | None = None,
        seed: int | None = None,
        rco: Keys | None = None,
        assistants: "Sequence[str | Student | Keys] | None" = None,
        **more: Any,
    ) -> None:
        given = {
            "model": model,
            "data": data,
            "teacher": teacher,
            "method": method,
            "optim": optim,
            "task": task,
            "weights": weights,
            "views": views,
            "source": source,
            "codec": codec,
            "label_weight": label_weight,
            "precision": precision,
            "teacher_precision": teacher_precision,
            "seed": seed,
            "rco": rco,
            "assistants": assistants,
        }
        super().__init__(given, more, stages)


class Experiment:
    """A named set of students: one, all combinations of a grid, or what a search draws.

    run: the student. grid: dotted keys of it, each with values, as in {"run.seed": range(3)}.
    search: dotted keys with what to draw from, as in {"run.optim.lr": {"loguniform": [0.01, 0.1]}}.
    sweep: how a search draws and stops. data: where the images are: a path, a URL, or
    {"path": ...}. scale: workers and what else is no part of a result. plugins: files and
    packages with methods and networks of one's own, as in ["mine.py"]. overrides: as of a
    command line, "run.optim.epochs=30".

    Raises `ConfigError`, with every mistake on a line of its own.
    """

    def __init__(
        self,
        run: Student | StudentRun | Keys,
        *,
        grid: Mapping[str, Sequence[Any]] | None = None,
        search: Mapping[str, Domain | Keys] | None = None,
        sweep: Sweep | Keys | None = None,
        data: str | PathLike[str] | Keys | None = None,
        scale: Scale | Keys | None = None,
        plugins: Sequence[str | PathLike[str]] | None = None,
        name: str = "experiment",
        overrides: Iterable[str] = (),
        **more: Any,
    ) -> None:
        if isinstance(data, str | PathLike):
            data = {"path": data}
        modules = [*dict.fromkeys((*_plugins_in(run), *_plugins_in(grid), *_plugins_in(more)))]
        if modules:
            plugins = [*(plugins or ()), *modules]
        given = {
            "data": data,
            "run": run,
            "grid": grid,
            "search": search,
            "sweep": sweep,
            "scale": scale,
            "plugins": plugins,
        }
        self.parsed = files.from_tree(Part(given, more).tree, name, overrides)

    @classmethod
    def of(cls, parsed: files.Experiment) -> "Experiment":
        """The experiment that was read already."""
        self = cls.__new__(cls)
        self.parsed = parsed
        return self

    @property
    def name(self) -> str:
        """Name of its table and its page."""
        return self.parsed.name

    def __reduce__(self) -> Any:
        return _unpickled, (loaded(), self.parsed)  # in this order: unpickling loads the plugins

    def students(self) -> tuple[StudentRun, ...]:
        """Recipes of its students, apart from those whose route is to be searched."""
        return self.parsed.students()

    def __len__(self) -> int:
        """The number of students; of a search 1, before it draws."""
        return len(self.parsed.runs)

    def __repr__(self) -> str:
        return f"<Experiment {self.name!r}: {counted(len(self), 'students')}>"


def _unpickled(_: Any, parsed: files.Experiment) -> Experiment:
    return Experiment.of(parsed)


def load(path: str | PathLike[str], *overrides: str) -> Experiment:
    """The experiment in a YAML file, with overrides such as "run.optim.epochs=30".

    Raises `ConfigError`, with every mistake on a line of its own and where it stands.
    """
    return Experiment.of(files.load(Path(path), overrides))


def experiment_of(value: "Experiment | Student | StudentRun | str | PathLike[str]") -> Experiment:
    """The experiment itself, that of one student, or the one in a file."""
    if isinstance(value, Experiment):
        return value
    if isinstance(value, str | PathLike):
        return load(value)
    return Experiment(value)


def _plugins_in(value: Any) -> Iterator[str]:
    """The files of the modules in a value."""
    if isinstance(value, Part):
        yield from value.plugins
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _plugins_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _plugins_in(inner)


def plain(value: Any) -> Any:
    """A value as plain dicts, lists, text and numbers.

    What is none of these stays as it is, and is refused with its place when the tree is read.
    """
    if isinstance(value, Part):
        return plain(value.tree)
    if isinstance(value, nn.Module):
        raise ConfigError(
            f"{type(value).__name__}: an nn.Module object is the model of raykd.Student or "
            "raykd.Teacher, with its weights; in a grid, give the whole one, as in "
            "{'run.teacher': [raykd.Teacher(first), raykd.Teacher(second)]}"
        )
    if isinstance(value, Record):
        return value.plain()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(inner) for inner in value]
    if isinstance(value, PathLike):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value  # numpy's
