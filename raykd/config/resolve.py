"""Resolution of an experiment: digests, sizes and weights, which only files can tell."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from raykd.config.experiment import Experiment, Where
from raykd.config.messages import Mistakes
from raykd.core.errors import ConfigError
from raykd.data import dataset
from raykd.data.recipe import Data, ResolvedData
from raykd.models.weights_import import WeightsImporter, copy_to_store, is_path, normalisation
from raykd.recipes import AnyTeacher, Asked, StudentRun, TeacherRun
from raykd.recipes.student import check_student
from raykd.storage.filesystem import is_url
from raykd.storage.store import Store
from raykd.tasks import Features, Task

# What can be done about a teacher of other classes.
ALIKE = (
    "teacher and student answer for the same classes, whatever the method reads: leave weights out "
    "to train the teacher on the student's images, or give weights that were trained on them"
)
Digests = dict[tuple[str, int | None, bool], str]  # digest of images, by dataset, resize, stream


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
    mistakes = Mistakes(experiment.places)

    def data(value: Data, root: str | None = train_root) -> ResolvedData:
        if (value, root) not in datasets:
            datasets[value, root] = read(value, root)
        return datasets[value, root]

    def read(value: Data, root: str | None) -> ResolvedData:
        name = value.name if root == train_root else f"{value.name} of the probe"
        source = (name, value.resize, value.stream is not None)
        if source not in digests and value.digest:
            digests[source] = value.digest
        if source not in digests:
            say(f"reading the images of {value.name!r}" + (f" from {root}" if root else ""))
            digests[source] = dataset.read(store, value, root, say, skip_bad=skip_bad).digest
        if not value.digest:
            value = value.model_copy(update={"digest": digests[source]})
        return dataset.read(store, value, root, say, skip_bad=skip_bad)

    def teacher_of(teacher: AnyTeacher) -> AnyTeacher:
        if isinstance(teacher, StudentRun):
            return student(teacher)
        resolved = data(teacher.data)
        if teacher.weights is None:
            return teacher.model_copy(update={"data": resolved})
        weights = importer.name(teacher.weights, teacher.model, resolved.classes)
        resolved = _normalised(teacher, weights, resolved)
        return teacher.model_copy(update={"data": resolved, "weights": weights})

    def student(run: StudentRun) -> StudentRun:
        teacher = None if run.teacher is None else teacher_of(run.teacher)
        after = None if run.after is None else student(run.after)
        update = {"data": data(run.data), "teacher": teacher, "after": after}
        run = run.model_copy(update=update | {"task": task(run.task)})
        if teacher is not None and teacher.data.classes != run.data.classes:
            raise ConfigError(
                f"experiment.run.teacher: it knows {teacher.data.classes} classes, "
                f"the student's data have {run.data.classes}; {ALIKE}"
            )
        try:
            check_student(run)  # once more, with what was read
        except ValueError as error:
            raise ConfigError(f"experiment.run: {error}") from error
        return run

    def task(value: Task) -> Task:
        if not isinstance(value, Features) or value.probe is None:
            return value
        probe = value.probe.model_copy(update={"data": data(value.probe.data, probe_root)})
        return value.model_copy(update={"probe": probe})

    def asked(run: Asked) -> Asked:
        if isinstance(run, StudentRun):
            return student(run)
        searched = student(run.search.student)
        return replace(run, search=run.search.model_copy(update={"student": searched}))

    runs: list[Asked] = []
    for run in experiment.runs:
        with mistakes.collecting():
            runs.append(asked(run))
    mistakes.raise_all()
    return replace(experiment, runs=tuple(runs))


def _root(path: str | None) -> str | None:
    """A location with `~` written out; a URL as it is."""
    return path if path is None or is_url(path) else str(Path(path).expanduser())


def portable(experiment: Experiment, store: Store) -> Experiment:
    """A resolved experiment as another process can read it: weights in the store, paths whole."""

    def within(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: within(inner, str(name)) for name, inner in value.items()}
        if isinstance(value, list):
            return [within(inner, key) for inner in value]
        path = key == "weights" and isinstance(value, str) and is_path(value)
        return copy_to_store(store, value) if path else value

    space = experiment.space
    if space is not None:
        grid = {axis: within(list(v), axis.rpartition(".")[2]) for axis, v in space.grid.items()}
        space = replace(space, base=within(dict(space.base)), grid=grid)
    whole = {
        name: path if path is None or is_url(path) else str(Path(path).expanduser().resolve())
        for name, path in experiment.where.plain().items()
    }
    return replace(experiment, space=space, where=Where(**whole))


def _normalised(teacher: TeacherRun, weights: str, read: ResolvedData) -> ResolvedData:
    """A given teacher's data with the normalisation that its weights expect, where they say so."""
    assert teacher.weights is not None
    library, slash, name = teacher.model.partition("/")
    if is_path(teacher.weights):
        mean, std = normalisation(teacher.weights)
    elif not slash or weights.startswith("sha256:"):
        return read
    else:
        from raykd.models import libraries  # torchvision takes seconds to import

        mean, std = libraries.preprocessing(library, name, weights)
    mean, std = teacher.data.mean or mean or read.mean, teacher.data.std or std or read.std
    return read.model_copy(update={"mean": mean, "std": std})
