"""Resolution of an experiment: digests, sizes and weights, which only files can tell."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from raykd.config.class_maps import resolve_classes
from raykd.config.experiment import Experiment
from raykd.config.messages import Mistakes
from raykd.core.errors import ConfigError, DataError
from raykd.data import dataset
from raykd.data.overlap import count_shared
from raykd.data.recipe import Data, ResolvedData
from raykd.data.sources import LISTS
from raykd.data.sources.folders import DISTRACTORS, has_gallery
from raykd.data.sources.pairs import folds_of
from raykd.data.sources.splits import UNLABELLED
from raykd.models.weights_config import Names, WeightsConfig, shorter_side
from raykd.models.weights_import import WeightsImporter, configuration
from raykd.recipes import AnyStudent, AnyTeacher, PanelRun, StudentRun, TeacherRun, Teaching
from raykd.recipes.student import check_student
from raykd.storage.filesystem import is_url
from raykd.storage.store import Store
from raykd.tasks import FaceSet, LabelledSet, RetrievalSet, Task, probe_of
from raykd.tasks.verification import numbers_of_distractors

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

    `digests` are those that are known already; what is read is added to them. Raises `ConfigError`
    and `DataError`, with the mistakes of all recipes.
    """
    resolver = _Resolver(experiment, store, say, {} if digests is None else digests)
    mistakes = Mistakes(experiment.places)
    runs: list[AnyStudent] = []
    for run in experiment.runs:
        with mistakes.collecting():
            runs.append(resolver.any_student(run))
    mistakes.raise_all()
    return replace(experiment, runs=tuple(runs))


class _Images:
    """Reader of an experiment's datasets; each is read once, however many recipes name it."""

    def __init__(
        self, experiment: Experiment, store: Store, say: Callable[[str], None], digests: Digests
    ) -> None:
        self._store, self._say, self._digests = store, say, digests
        self._skip_bad = experiment.scale.on_bad_image == "skip"
        self._train_root = _root(experiment.where.path)
        self._probe_root = _root(experiment.where.probe) or self._train_root
        self._read: dict[tuple[Data, str | None], ResolvedData] = {}
        self._crowds: dict[ResolvedData, bool] = {}  # with distractors among them, or not
        self._compared: set[tuple[ResolvedData, ResolvedData]] = set()

    def data(self, stated: Data) -> ResolvedData:
        """The data of a student or a teacher."""
        if stated.name in LISTS:
            raise ConfigError(
                f"run.data.name: {stated.name!r} is a list by which a task `{LISTS[stated.name]}` "
                "is judged; give it to run.task.probe.data, and images to train on here"
            )
        read = self._once(stated, self._train_root)
        if self._has_distractors(read):
            raise ConfigError(
                "run.data: its folder distractors is of nobody in particular, and serves a probe "
                "of task faces; give a folder for each class"
            )
        return read

    def judged(self, stated: Data) -> ResolvedData:
        """The data of a probe."""
        return self._once(stated, self._probe_root)

    def gallery(self, judge: RetrievalSet) -> RetrievalSet:
        """A set for retrieval, with the gallery apart that its folder has, if none is stated."""
        if "gallery" in judge.model_fields_set or judge.data.name != "folder":
            return judge
        return judge.model_copy(update={"gallery": "train"}) if self._has_gallery else judge

    @functools.cached_property
    def _has_gallery(self) -> bool:
        """True where the images of the probe are those of a gallery and queries."""
        return self._probe_root is not None and has_gallery(self._probe_root)

    def distractors(self, judge: FaceSet, judged: ResolvedData) -> FaceSet:
        """A set of faces with numbers of the distractors among its images, if none are stated."""
        if "distractors" in judge.model_fields_set or not self._has_distractors(judged):
            return judge
        count = len(dataset.open_split(self._store, judged, "train"))
        return judge.model_copy(update={"distractors": numbers_of_distractors(count)})

    def check_distractors(self, judge: LabelledSet, judged: ResolvedData) -> None:
        """Raise `ConfigError` where distractors of a probe would count as one class."""
        used = isinstance(judge, FaceSet) and judge.distractors is not None
        if not used and self._has_distractors(judged):
            raise ConfigError(
                "run.task.probe.data: its folder distractors is of nobody in particular; leave "
                "task.probe.distractors of task faces out or name numbers, or give a folder "
                "without it"
            )

    def _has_distractors(self, read: ResolvedData) -> bool:
        """True where images of a folder `distractors` are among some data's."""
        if read not in self._crowds:
            self._crowds[read] = DISTRACTORS in dataset.class_names(self._store, read)
        return self._crowds[read]

    def check_folds(self, judge: FaceSet) -> None:
        """Raise `ConfigError` where a list of pairs states another number of folds."""
        stated = None if self._probe_root is None else folds_of(self._probe_root)
        if stated not in (None, judge.folds):
            raise ConfigError(
                f"run.task.probe.folds: expected the {stated} that the list states, got "
                f"{judge.folds}; set folds: {stated}"
            )

    def _once(self, stated: Data, root: str | None) -> ResolvedData:
        if (stated, root) not in self._read:
            name = stated.name if root == self._train_root else f"{stated.name} of the probe"
            source = (name, stated.resize, stated.stream is not None, stated.labels)
            self._read[stated, root] = self._identified(stated, root, source)
        return self._read[stated, root]

    def _identified(
        self, stated: Data, root: str | None, source: tuple[str, int | None, bool, str]
    ) -> ResolvedData:
        """The data with their digest: the stated one, a known one, or that of the images."""
        store, say = self._store, self._say
        skip_bad = self._skip_bad and stated.name not in LISTS  # which speak of each image
        if source not in self._digests and stated.digest:
            self._digests[source] = stated.digest
        if source not in self._digests:
            say(f"reading the images of {stated.name!r}" + (f" from {root}" if root else ""))
            read = dataset.read(store, stated, root, say, skip_bad=skip_bad)
            self._digests[source] = read.digest
        if not stated.digest:
            stated = stated.model_copy(update={"digest": self._digests[source]})
        return dataset.read(store, stated, root, say, skip_bad=skip_bad)

    def _shared(self, trained: ResolvedData, judged: ResolvedData) -> tuple[int, int]:
        """Test images that are training images too, and all test images; zeros once that was asked.

        Zeros as well where images cannot be compared.
        """
        if (trained, judged) in self._compared:
            return 0, 0
        self._compared.add((trained, judged))
        return count_shared(self._store, trained, judged) or (0, 0)

    def warn_of_doubles(self, judged: ResolvedData) -> None:
        """Say once how many images of probes are distractors, too."""
        shared, images = self._shared(judged, judged) if self._has_distractors(judged) else (0, 0)
        if shared:
            self._say(
                f"warning: run.task.probe.data: {shared:,} of the {images:,} images of probes are "
                "distractors, too, and count as those of others there"
            )

    def warn_of_shared(self, trained: ResolvedData, judged: ResolvedData) -> None:
        """Say once of each pair of data how many test images of a probe are trained on."""
        shared, images = self._shared(trained, judged)
        if shared:
            self._say(
                f"warning: run.task.probe.data: {shared:,} of the {images:,} test images of the "
                "probe are in the training set; its accuracy is that of images that the student "
                "has seen"
            )


class _Resolver:
    """Resolution of recipes, from the inside out: data, teachers, then the student."""

    def __init__(
        self, experiment: Experiment, store: Store, say: Callable[[str], None], digests: Digests
    ) -> None:
        self._store, self._has_probe_path = store, experiment.where.probe is not None
        self._images = _Images(experiment, store, say, digests)
        self._importer = WeightsImporter(store, say)
        self._say, self._warned = say, set[str]()
        self._taught: dict[tuple[Teaching, Data, str], Teaching] = {}

    def any_student(self, run: AnyStudent) -> AnyStudent:
        """A student, or one that a search finds."""
        if isinstance(run, StudentRun):
            return self._student(run)
        searched = self._student(run.search.student)
        return replace(run, search=run.search.model_copy(update={"student": searched}))

    def _student(self, run: StudentRun, key: str = "experiment.run") -> StudentRun:
        teacher, after, stated = run.teacher, run.after, run.data
        if teacher is not None:
            stated_teacher = teacher, stated, f"{key}.teacher"
            if stated_teacher not in self._taught:  # most students of a grid have one teacher
                self._taught[stated_teacher] = self._teaching(*stated_teacher)
            teacher = self._taught[stated_teacher]
        if after is not None:
            after = self._student(after, f"{key}.after")
        run = self._started(run, self._images.data(stated), key)
        if after is not None and after.stages()[0].weights is not None:  # it sees what that saw
            seen = {name: getattr(stated, name) or getattr(after.data, name) for name in _COLOURS}
            run = run.model_copy(update={"data": run.data.model_copy(update=seen)})
        task = self._task(run.task, stated)
        run = run.model_copy(update={"teacher": teacher, "after": after, "task": task})
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

    def _started(self, run: _Started, read: ResolvedData, key: str) -> _Started:
        """A recipe with its images, and with the weights that its training starts from."""
        if run.weights is None:
            return run.model_copy(update={"data": read})
        labelled = not isinstance(run, StudentRun) or run.task.labelled
        with _keyed(f"{key}.weights"):
            said = configuration(run.weights, run.model, self._store)
            classes = read.classes if labelled else 0
            weights = self._importer.name(run.weights, run.model, classes, start=True)
        self._warn_of_size(f"{key}.data", said, min(read.size))
        read = _normalised(run.data, said, read)
        return run.model_copy(update={"data": read, "weights": weights})

    def _warn_of_size(self, key: str, said: WeightsConfig, side: int) -> None:
        """Say where images are much smaller than those that weights are for."""
        if said.side is not None and said.side > 2 * side and key not in self._warned:
            self._warned.add(key)
            self._say(
                f"warning: {key.removeprefix('experiment.')}: the weights are for images of "
                f"{said.side} pixels a side, and the network sees {side}; it answers far worse "
                "on such small ones"
            )

    def _task(self, task: Task, stated: Data) -> Task:
        """A task with the data of its probe, which may be in a place of their own."""
        judge = probe_of(task)
        if judge is None:
            return task
        if task.name != (meant := LISTS.get(judge.data.name, task.name)):
            raise ConfigError(
                f"run.task.probe.data.name: {judge.data.name!r} is a list, which task "
                f"{task.name!r} has no use for; give it labelled images, or choose task: {meant}"
            )
        if judge.data.validation is not None:
            raise ConfigError(
                "run.task.probe.data.validation: a probe knows all training images of its data, "
                "of which this would hold a share back; leave it out"
            )
        try:
            judged = self._images.judged(judge.data)
            if isinstance(judge, RetrievalSet):
                judge = self._images.gallery(judge)
            if isinstance(judge, FaceSet):
                judge = self._images.distractors(judge, judged)
                if judge.is_listed and not judge.data.digest:
                    self._images.check_folds(judge)
            self._images.check_distractors(judge, judged)
        except (ConfigError, DataError) as error:
            kind = type(error)
            raise kind(_of_probe(str(error), named=self._has_probe_path)) from error
        self._images.warn_of_shared(self._images.data(stated), judged)
        self._images.warn_of_doubles(judged)
        probe = judge.model_copy(update={"data": judged})
        return task.model_copy(update={"probe": probe})

    def _teaching(self, teacher: Teaching, taught: Data, key: str) -> Teaching:
        """A teacher, or a panel with each of its members."""
        if isinstance(teacher, PanelRun):
            members = tuple(
                self._teacher(member, taught, f"{key}.panel.{number}")
                for number, member in enumerate(teacher.panel)
            )
            return teacher.model_copy(update={"panel": members})
        return self._teacher(teacher, taught, key)

    def _teacher(self, teacher: AnyTeacher, taught: Data, key: str) -> AnyTeacher:
        """A teacher with its number of classes and their map to those of the data `taught`."""
        if isinstance(teacher, StudentRun):
            return self._student(teacher, key)
        # A given teacher's outputs are those of its weights, a trained one's those of its data.
        if teacher.is_given:
            teacher, outputs, names = self._given_teacher(teacher, taught, key)
        else:
            teacher, outputs, names = self._trained_teacher(teacher, key)
        resolved, classes = self._images.data(taught), teacher.classes
        if classes is not None:
            own = dataset.class_names(self._store, resolved)
            with _keyed(f"{key}.classes"):
                if not own:
                    raise ConfigError("the data have no classes to map; leave it out")
                classes = resolve_classes(classes, own, outputs, names)
        # The number of outputs is written down only where the data do not say it.
        own_data = teacher.data.classes
        plain = outputs == own_data and (classes is not None or own_data == resolved.classes)
        plain = plain and (outputs > 0 or not teacher.is_given)
        update = {"outputs": None if plain else outputs, "classes": classes}
        return teacher.model_copy(update=update)

    def _trained_teacher(self, teacher: TeacherRun, key: str) -> tuple[TeacherRun, int, Names]:
        """A teacher that is trained here, with the number and the names of its classes."""
        if teacher.size is not None:
            raise ConfigError(
                f"{key}.size: it is of given weights; a teacher that is trained here sees its "
                "data, so set the teacher's data.resize, or data.stream, and leave it out"
            )
        read = self._images.data(teacher.data)
        _check_outputs(teacher, read.classes, "its data", key)
        names = tuple((name,) for name in dataset.class_names(self._store, read))
        started = self._started(teacher, read, key)
        task = self._task(teacher.task, teacher.data)
        return started.model_copy(update={"task": task}), read.classes, names

    def _given_teacher(
        self, teacher: TeacherRun, taught: Data, key: str
    ) -> tuple[TeacherRun, int, Names]:
        """A teacher of given weights, with the number and the names of its classes."""
        assert teacher.weights is not None
        with _keyed(f"{key}.weights"):
            said = configuration(teacher.weights, teacher.model, self._store)
            read = self._images.data(_as_weights_see(teacher, taught, said))
            outputs = self._importer.outputs(teacher.weights, teacher.model, read.classes)
        _check_outputs(teacher, outputs, "the weights", key)
        seen = read.size if read.stream is not None else self._images.data(taught).size
        if teacher.size is None and said.side is not None and said.side > 2 * min(seen):
            raise ConfigError(
                f"{key}: its weights are for images of {said.side} pixels a side, and it would see "
                f"{min(seen)}; set {key.removeprefix('experiment.')}.size: {said.side} to enlarge "
                f"them, or {min(seen)} to use them as they are"
            )
        self._warn_of_size(f"{key}.size", said, teacher.size or min(seen))
        with _keyed(f"{key}.weights"):
            weights = self._importer.name(teacher.weights, teacher.model, outputs)
        read = _normalised(teacher.data, said, read)
        names = said.names if len(said.names) == outputs else ()
        return teacher.model_copy(update={"data": read, "weights": weights}), outputs, names


def _check_outputs(teacher: TeacherRun, outputs: int, source: str, key: str) -> None:
    """Refuse a stated number of outputs that is not that of the `source`."""
    if teacher.outputs not in (None, outputs):
        raise ConfigError(
            f"{key}.outputs: expected {outputs}, the classes of {source}, got {teacher.outputs}; "
            "leave it out"
        )


def _root(path: str | None) -> str | None:
    """A location with `~` written out; a URL as it is."""
    return path if path is None or is_url(path) else str(Path(path).expanduser())


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
