"""Resolution of an experiment: digests, sizes and weights, which only files can tell."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from raykd.config.class_maps import NAMES, WORDNET, read_table, resolve_classes
from raykd.config.experiment import Experiment, Where
from raykd.config.messages import Mistakes
from raykd.core.errors import ConfigError, DataError
from raykd.data import dataset
from raykd.data.overlap import count_shared
from raykd.data.recipe import Data, ResolvedData
from raykd.data.sources.hub_datasets import is_on_hub
from raykd.data.sources.splits import UNLABELLED
from raykd.models.weights_config import Names, WeightsConfig, shorter_side
from raykd.models.weights_import import WeightsImporter, configuration, is_path, portable_name
from raykd.recipes import AnyStudent, AnyTeacher, PanelRun, StudentRun, TeacherRun, Teaching
from raykd.recipes.student import check_student
from raykd.storage.filesystem import is_url
from raykd.storage.store import Store
from raykd.tasks import Features, Task

_COLOURS = ("mean", "std")
_Started = TypeVar("_Started", TeacherRun, StudentRun)
# Digests of images, by dataset, resize, stream and labels.
Digests = dict[tuple[str, int | None, bool, str], str]


def resolve(
    experiment: Experiment,
    store: Store,
    say: Callable[[str], None] = lambda text: None,
    digests: Digests | None = None,
) -> Experiment:
    """The experiment with what only files can tell: digests, classes, sizes, weights.

    `digests` are those that are known already; what is read is added to them.
    """
    train_root = _root(experiment.where.path)
    probe_root = _root(experiment.where.probe) or train_root
    skip_bad = experiment.scale.on_bad_image == "skip"
    digests = {} if digests is None else digests  # files are read once, however many recipes
    importer = WeightsImporter(store, say)
    datasets: dict[tuple[Data, str | None], ResolvedData] = {}  # by what the file says of them
    compared: set[tuple[ResolvedData, ResolvedData]] = set()
    mistakes = Mistakes(experiment.places)

    def data(value: Data, root: str | None = train_root) -> ResolvedData:
        if (value, root) not in datasets:
            datasets[value, root] = read(value, root)
        return datasets[value, root]

    def read(value: Data, root: str | None) -> ResolvedData:
        name = value.name if root == train_root else f"{value.name} of the probe"
        source = (name, value.resize, value.stream is not None, value.labels)
        if source not in digests and value.digest:
            digests[source] = value.digest
        if source not in digests:
            say(f"reading the images of {value.name!r}" + (f" from {root}" if root else ""))
            digests[source] = dataset.read(store, value, root, say, skip_bad=skip_bad).digest
        if not value.digest:
            value = value.model_copy(update={"digest": digests[source]})
        return dataset.read(store, value, root, say, skip_bad=skip_bad)

    def teacher_of(teacher: AnyTeacher, taught: Data, key: str) -> AnyTeacher:
        if isinstance(teacher, StudentRun):
            return student(teacher, key)
        given = given_teacher(teacher, taught, key) if teacher.is_given else None
        teacher, outputs, names = given or trained_teacher(teacher, key)
        resolved, classes = data(taught), teacher.classes
        if classes is not None:
            own = dataset.class_names(store, resolved)
            with _keyed(f"{key}.classes"):
                if not own:
                    raise ConfigError("the data have no classes to map; leave it out")
                classes = resolve_classes(classes, own, outputs, names)
        own_data = teacher.data.classes
        plain = outputs == own_data and (classes is not None or own_data == resolved.classes)
        plain = plain and (outputs > 0 or not teacher.is_given)
        update = {"outputs": None if plain else outputs, "classes": classes}
        return teacher.model_copy(update=update)

    def trained_teacher(teacher: TeacherRun, key: str) -> tuple[TeacherRun, int, Names]:
        """A teacher that is trained here, with the number and the names of its classes."""
        if teacher.size is not None:
            raise ConfigError(
                f"{key}.size: it is of given weights; a teacher that is trained here sees its "
                "data, so set the teacher's data.resize, or data.stream, and leave it out"
            )
        read = data(teacher.data)
        if teacher.outputs not in (None, read.classes):
            raise ConfigError(
                f"{key}.outputs: expected {read.classes}, the classes of its data, got "
                f"{teacher.outputs}; leave it out"
            )
        names = tuple((name,) for name in dataset.class_names(store, read))
        return started(teacher, read, key), read.classes, names

    def given_teacher(teacher: TeacherRun, taught: Data, key: str) -> tuple[TeacherRun, int, Names]:
        """A teacher of given weights, with the number and the names of its classes."""
        assert teacher.weights is not None
        with _keyed(f"{key}.weights"):
            said = configuration(teacher.weights, teacher.model, store)
            read = data(_as_weights_see(teacher, taught, said))
            outputs = importer.outputs(teacher.weights, teacher.model, read.classes)
        if teacher.outputs not in (None, outputs):
            raise ConfigError(
                f"{key}.outputs: expected {outputs}, the classes of the weights, got "
                f"{teacher.outputs}; leave it out"
            )
        seen = read.size if read.stream is not None else data(taught).size
        if teacher.size is None and said.side is not None and said.side > 2 * min(seen):
            raise ConfigError(
                f"{key}: its weights are for images of {said.side} pixels a side, and it would see "
                f"{min(seen)}; set {key.removeprefix('experiment.')}.size: {said.side} to enlarge "
                f"them, or {min(seen)} to use them as they are"
            )
        with _keyed(f"{key}.weights"):
            weights = importer.name(teacher.weights, teacher.model, outputs)
        read = _normalised(teacher.data, said, read)
        names = said.names if len(said.names) == outputs else ()
        return teacher.model_copy(update={"data": read, "weights": weights}), outputs, names

    def teaching(teacher: Teaching, taught: Data, key: str) -> Teaching:
        if isinstance(teacher, PanelRun):
            members = tuple(
                teacher_of(member, taught, f"{key}.panel.{number}")
                for number, member in enumerate(teacher.panel)
            )
            return teacher.model_copy(update={"panel": members})
        return teacher_of(teacher, taught, key)

    def started(run: _Started, read: ResolvedData, key: str) -> _Started:
        """A recipe with its images, and with the weights that its training starts from."""
        if run.weights is None:
            return run.model_copy(update={"data": read})
        labelled = not isinstance(run, StudentRun) or run.task.labelled
        with _keyed(f"{key}.weights"):
            said = configuration(run.weights, run.model, store)
            classes = read.classes if labelled else 0
            weights = importer.name(run.weights, run.model, classes, start=True)
        read = _normalised(run.data, said, read)
        return run.model_copy(update={"data": read, "weights": weights})

    def student(run: StudentRun, key: str = "experiment.run") -> StudentRun:
        teacher = None if run.teacher is None else teaching(run.teacher, run.data, f"{key}.teacher")
        after = None if run.after is None else student(run.after, f"{key}.after")
        stated = run.data
        run = started(run, data(run.data), key)
        if after is not None and after.stages()[0].weights is not None:  # it sees what that saw
            seen = {name: getattr(stated, name) or getattr(after.data, name) for name in _COLOURS}
            run = run.model_copy(update={"data": run.data.model_copy(update=seen)})
        update = {"teacher": teacher, "after": after, "task": task(run.task, data(stated))}
        run = run.model_copy(update=update)
        for assistant in run.members():
            theirs = assistant.data.classes
            if isinstance(assistant, StudentRun) and theirs != run.data.classes:
                raise ConfigError(
                    f"experiment.run.teacher: it is a student that knows {theirs} classes, and "
                    f"this one's data have {run.data.classes}; give both the same data"
                )
        try:
            check_student(run)  # once more, with what was read
        except ValueError as error:
            raise ConfigError(f"experiment.run: {error}") from error
        return run

    def task(value: Task, trained: ResolvedData) -> Task:
        if not isinstance(value, Features) or value.probe is None:
            return value
        try:
            judged = data(value.probe.data, probe_root)
        except (ConfigError, DataError) as error:
            kind = type(error)
            raise kind(_of_probe(str(error), named=experiment.where.probe is not None)) from error
        warn_of_shared(trained, judged)
        probe = value.probe.model_copy(update={"data": judged})
        return value.model_copy(update={"probe": probe})

    def warn_of_shared(trained: ResolvedData, judged: ResolvedData) -> None:
        """Say once of each pair of data how many test images of a probe are trained on."""
        if (trained, judged) in compared:
            return
        compared.add((trained, judged))
        shared, images = count_shared(store, trained, judged) or (0, 0)
        if shared:
            say(
                f"warning: run.task.probe.data: {shared:,} of the {images:,} test images of the "
                "probe are in the training set; its accuracy is that of images that the student "
                "has seen"
            )

    def asked(run: AnyStudent) -> AnyStudent:
        if isinstance(run, StudentRun):
            return student(run)
        searched = student(run.search.student)
        return replace(run, search=run.search.model_copy(update={"student": searched}))

    runs: list[AnyStudent] = []
    for run in experiment.runs:
        with mistakes.collecting():
            runs.append(asked(run))
    mistakes.raise_all()
    return replace(experiment, runs=tuple(runs))


def _root(path: str | None) -> str | None:
    """A location with `~` written out; a URL as it is."""
    return path if path is None or is_url(path) else str(Path(path).expanduser())


def _whole(path: str) -> str:
    """The whole path of a file or folder of this machine."""
    return str(Path(path).expanduser().resolve())


def portable(experiment: Experiment, store: Store) -> Experiment:
    """A resolved experiment as another process can read it: weights in the store, paths whole."""

    def within(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: within(inner, str(name)) for name, inner in value.items()}
        if isinstance(value, list):
            return [within(inner, key) for inner in value]
        if key == "classes" and isinstance(value, str) and value not in (NAMES, WORDNET):
            return [list(row) for row in read_table(value)]
        path = key == "weights" and isinstance(value, str) and is_path(value)
        return portable_name(store, value) if path else value

    space = experiment.space
    if space is not None:
        grid = {axis: within(list(v), axis.rpartition(".")[2]) for axis, v in space.grid.items()}
        space = replace(space, base=within(dict(space.base)), grid=grid)
    whole = {
        name: path if path is None or is_url(path) or is_on_hub(path) else _whole(path)
        for name, path in experiment.where.plain().items()
    }
    return replace(experiment, space=space, where=Where(**whole))


def _of_probe(text: str, *, named: bool) -> str:
    """A message about images as one about those of a probe; `named`: data.probe is given."""
    text = text.replace(UNLABELLED, "a probe needs labels: data.probe is where labelled images are")
    text = text.replace("run.data", "run.task.probe.data")
    text = text.replace("data.path", "data.probe") if named else text
    start = "" if text.startswith("run.task") else "run.task.probe.data: "
    return f"experiment.{start}{text}"


def _as_weights_see(teacher: TeacherRun, taught: Data, said: WeightsConfig) -> Data:
    """A given teacher's data, streamed at the size that it asks for, resized as its weights say.

    Without a size and data of its own, that of its weights, and the same part of the picture.
    """
    stream, side = teacher.data.stream, teacher.size
    if stream is None:
        return teacher.data
    same = (teacher.data.name, stream) == (taught.name, taught.stream)
    if side is None and same and said.side is not None:
        size, resize = said.side, said.resize or said.side
    elif side is None or side == stream.size:
        return teacher.data
    else:
        share = said.side / said.resize if said.side and said.resize else 224 / 256
        size, resize = side, shorter_side(side, share)
    kind = "bicubic" if said.interpolation == "bicubic" else stream.interpolation
    stream = stream.model_copy(update={"size": size, "resize": resize, "interpolation": kind})
    # A size that was read before is of the other stream.
    known = {} if teacher.data.size is None else {"size": (size, size)}
    return teacher.data.model_copy(update={"stream": stream} | known)


def _normalised(stated: Data, said: WeightsConfig, read: ResolvedData) -> ResolvedData:
    """Data with the normalisation of the file, of the weights, or of the images."""
    mean, std = stated.mean or said.mean or read.mean, stated.std or said.std or read.std
    return read.model_copy(update={"mean": mean, "std": std})


@contextlib.contextmanager
def _keyed(key: str) -> Iterator[None]:
    """A region whose `ConfigError` is about the value of a key."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
