"""Checks of everything that an experiment will train, before anything is trained.

Networks are built and run once, methods are checked against both networks, batches against the
images and the workers. Students that differ in rates and seeds alone cost what one of them does.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

from torch import Tensor

from raykd.config.experiment import Experiment, basis
from raykd.config.messages import Mistakes
from raykd.config.overrides import value_at, within
from raykd.config.scale import Workers, least, most
from raykd.core.errors import CacheCorrupt, CacheMismatch, ConfigError
from raykd.core.types import Shapes, Signal
from raykd.data.dataset import class_names, open_images
from raykd.data.loading.sampler import check_batch, check_uneven
from raykd.data.recipe import Data, ResolvedData
from raykd.methods import METHODS
from raykd.planning.remaining import missing_bytes
from raykd.recipes import (
    AnyTeacher,
    PanelRun,
    PreludeRun,
    StudentRun,
    TeacherRun,
    Training,
    training_of,
)
from raykd.storage.store import Store
from raykd.tasks import FaceSet, Task, probe_of
from raykd.tracking import check_trackers
from raykd.training import dry_run
from raykd.training.cache_builder import check_room
from raykd.training.panel import of_panel

_DATA_KEY = re.compile(r"run\.(data[.\w]*): ")  # beginning of a message about images
Mistaken = tuple[tuple[str, str], ...]  # mistakes: the key within a run, and a sentence

_Value = TypeVar("_Value")


def preflight(experiment: Experiment, store: Store) -> None:
    """Raise `ConfigError`, with every mistake, where a resolved experiment cannot be carried out.

    Artefacts that the store has are not checked.
    """
    check_trackers(experiment.scale.track, store)
    mistakes, checks = Mistakes(experiment.places), _Checks(experiment, store)
    several = len(experiment.runs) > 1
    for run in experiment.runs:
        student = basis(run)
        label = f"{student.method.label} {student.model} seed {student.seed}" if several else None
        lines: dict[str, None] = {}
        for part, data, piece in _pieces(student, experiment):
            mistaken = () if _is_made(store, piece) else checks.of(piece)
            for key, text in () if mistaken and store.has(piece) else mistaken:
                where = data if key.startswith("data") else part
                text = text.replace("run.optim.batch", f"{part}.optim.batch")
                lines[f"experiment.{where}.{key}: {text}"] = None
        for line in () if lines and isinstance(run, StudentRun) and store.has(run) else lines:
            mistakes.add(line, label)
    mistakes.raise_all()


def _is_made(store: Store, piece: Training) -> bool:
    """True where a store has an artefact whose marker is right."""
    with contextlib.suppress(CacheCorrupt, CacheMismatch):
        return store.has(piece)
    return False


def check_disk(experiment: Experiment, store: Store) -> None:
    """Raise `NoRoom` where the caches that students lack do not fit on the disk.

    A manifest that is damaged, or another's, stops its own students alone, and later.
    """
    with contextlib.suppress(CacheCorrupt, CacheMismatch):
        check_room(store, missing_bytes(experiment, store))


def _pieces(run: StudentRun, experiment: Experiment) -> Iterator[tuple[str, str, Training]]:
    """A student and everything trained for it, each with its key in the file.

    The second key is of the part whose data it has: a teacher's may be the student's.
    """
    space = experiment.space
    base = {} if space is None else dict(space.base)
    axes = () if space is None else (*space.grid, *space.search)

    def is_set(key: str) -> bool:
        try:
            value_at(base, key)
        except LookupError:
            return any(within(axis[4:], key) for axis in axes)
        return True

    has_assistants, has_route = is_set("run.assistants"), is_set("run.rco")

    def pieces(run: StudentRun, key: str, data: str) -> Iterator[tuple[str, str, Training]]:
        prelude = run.prelude()
        for number, teacher in enumerate(run.members()):
            member = f".panel.{number}" if isinstance(run.teacher, PanelRun) else ""
            above = f"{key}.teacher{member}"
            if isinstance(teacher, StudentRun):
                above = "run.assistants" if has_assistants else above
                yield from pieces(teacher, above, above if is_set(f"{above}.data") else data)
            else:
                above = f"run.teacher{member}" if has_assistants else above
                yield above, above if is_set(f"{above}.data") else data, teacher
        if run.after is not None:
            after = key if has_route else f"{key}.after"
            yield from pieces(run.after, after, after)
        if prelude is not None:
            yield key, data, prelude
        yield key, data, run

    return pieces(run, "run", "run")


class _Checks:
    """Checks of trainings; each is made once for all that have it in common."""

    def __init__(self, experiment: Experiment, store: Store) -> None:
        self._experiment, self._store = experiment, store
        self._known: dict[Any, tuple[Any, Mistaken]] = {}  # by where a mistake is, and a key

    def of(self, piece: Training) -> Mistaken:
        """Mistakes of a training."""
        if isinstance(piece, TeacherRun):
            if piece.is_given:
                return self._teacher_shapes("model", piece, piece.data.resolved())[1]
            run, workers = training_of(piece), self._experiment.teacher_workers(piece)
        else:
            workers = self._experiment.workers(piece)
            run = piece.training() if isinstance(piece, PreludeRun) else piece
        plain = {"optim": None, "seed": 0, "route": None, "after": None}
        alike = run.model_copy(update=plain | {"first_epoch": 0, "views": "all"})
        key = ("", (type(piece), alike, run.optim.batch, workers))
        if key not in self._known:
            mistakes = tuple(dict.fromkeys(self._trained(piece, run, workers)))
            self._known[key] = None, mistakes
        return self._known[key][1]

    def _check(
        self, where: str, key: Any, call: Callable[[], _Value]
    ) -> tuple[_Value | None, Mistaken]:
        """The value of a call, which is made once for all equal keys; or its mistake."""
        if (where, key) not in self._known:
            try:
                self._known[where, key] = call(), ()
            except ConfigError as error:
                text, part = str(error), where
                if isinstance(error, dry_run.OneValue):
                    part = "optim.batch"
                elif keyed := _DATA_KEY.match(text):
                    part, text = keyed[1], text[keyed.end() :]
                self._known[where, key] = None, ((part, text),)
        return self._known[where, key]

    def _trained(
        self, piece: Training, run: StudentRun, workers: Workers
    ) -> Iterator[tuple[str, str]]:
        """Mistakes of a training that goes through images."""
        scale, batch = self._experiment.scale, run.optim.batch
        targets, mistakes = self._check(
            "data", run.data, lambda: open_images(self._store, run.data)[0].targets
        )
        if targets is None:
            yield from mistakes
            return
        # The batch, and the least share of it.
        rows = len(targets)
        share, mistakes = self._check(
            "optim.batch",
            (rows, batch, workers),
            lambda: _least_share(rows, batch, workers, scale.accumulate),
        )
        yield from mistakes
        some = min(share or 2, 2)
        # The network that is trained; a prelude may train none.
        data = run.data.resolved()
        shapes, mistakes = self._shapes("model", run.model, run.head, data)
        if not (isinstance(piece, PreludeRun) and piece.model is None):
            if shapes is not None:
                _, mistakes = self._check(
                    "model",
                    ("trainable", run.model, run.head, data.size, some),
                    lambda: dry_run.check_training(run.model, run.head, data.size, some),
                )
            if not mistakes:
                key = ("task", run.model, run.head, run.task)
                _, mistakes = self._check("model", key, lambda: dry_run.check_task(run))
            yield from mistakes
            if not mistakes:
                yield from self._parts(run)
            if (judge := probe_of(run.task)) is not None:
                probed = judge.data.resolved()
                yield from self._shapes("task.probe.data", run.model, run.head, probed)[1]
                for teacher in run.members() if run.task.teacher_embeds() else ():
                    seen = run.as_teacher_sees(judge.data, teacher).resolved()
                    yield from self._teacher_shapes("task.probe.data", teacher, seen)[1]
            yield from self._judges(run)
        theirs = shapes  # a teacherless method is held against the student
        if shapes is None or mistakes:
            return
        if not (run.method.teacherless or run.method.needs()):  # labels alone
            yield from self._check("optim", run, lambda: dry_run.refuse_helpers(run))[1]
            return
        # The method, held against both networks.
        each: list[Shapes] = []
        for teacher in () if run.method.teacherless else run.members()[::-1]:
            seen = run.as_teacher_sees(run.data, teacher).resolved()
            theirs, mistakes = self._teacher_shapes("teacher.model", teacher, seen)
            if mistakes or theirs is None:
                break
            each.insert(0, theirs)
        if each and not mistakes and theirs is not None:
            theirs = of_panel(each) if run.method.panel else each[0]
        if theirs is not None and _unanswered(run):
            answers = functools.partial(_other_methods, run, shapes, theirs, targets.unique())
            mistakes = (("method", _refuse_logits(run, answers())),)
        elif theirs is not None:
            shared = scale.shard == "fsdp" and most(workers) > 1
            call = functools.partial(dry_run.check_method, run, shapes, theirs, targets.unique())
            _, mistakes = self._check("method", (run, shared), lambda: call(shared=shared))
        if not mistakes and (share == 1 or run.plugins):
            call = functools.partial(dry_run.check_step, run, targets, some)
            _, mistakes = self._check("method", ("step", run), call)
        yield from mistakes

    def _judges(self, run: StudentRun) -> Iterator[tuple[str, str]]:
        """Mistakes in the images by which a task judges embeddings."""
        task, judge = run.task, probe_of(run.task)
        sets: list[tuple[str, Data]] = [("data", run.data)]
        if judge is not None:
            sets.append(("task.probe.data", judge.data))
            if isinstance(judge, FaceSet):
                call = functools.partial(_check_apart, self._store, run.data, judge.data)
                yield from self._check("task.probe.data", ("apart", run.data, judge.data), call)[1]
        for where, data in sets:
            of_probe = where != "data"
            call = functools.partial(_check_labels, self._store, task, data, of_probe=of_probe)
            yield from self._check(where, ("labels", task, data), call)[1]

    def _parts(self, run: StudentRun) -> Iterator[tuple[str, str]]:
        """Mistakes in the parts that the optimiser names."""
        keys: tuple[Literal["parts", "freeze"], ...] = ("parts", "freeze")
        for key in keys:
            named = (run.model, run.head, run.method.trains, getattr(run.optim, key))
            call = functools.partial(dry_run.check_parts, run, key)
            yield from self._check(f"optim.{key}", named, call)[1]

    def _shapes(
        self, where: str, model: str, classes: int, data: ResolvedData
    ) -> tuple[Shapes | None, Mistaken]:
        """The sizes of a network's outputs for images of a size, or its mistake."""
        key = (model, classes, data.size)
        return self._check(where, key, lambda: dry_run.shapes_of(*key))

    def _teacher_shapes(
        self, where: str, teacher: AnyTeacher, seen: ResolvedData
    ) -> tuple[Shapes | None, Mistaken]:
        """The sizes of a teacher's outputs for the images that it sees, or its mistake."""
        if isinstance(teacher, StudentRun):
            return self._shapes(where, teacher.model, teacher.head, seen)
        key = (teacher.model, teacher.own_classes(), teacher.classes, teacher.size, seen.size)
        return self._check(where, key, lambda: dry_run.shapes_of_teacher(teacher, seen.size))


def _check_labels(store: Store, task: Task, data: Data, *, of_probe: bool) -> None:
    """Raise `ConfigError` where the labels of some images cannot judge."""
    if data.labels == "none" or not (task.collects or of_probe):
        return
    train, test = open_images(store, data)
    try:
        task.check_labels(train.targets, test.targets, of_probe=of_probe)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_apart(store: Store, trained: Data, judged: Data) -> None:
    """Raise `ConfigError` where people of a probe are among those that are trained on."""
    names = [class_names(store, data.resolved()) for data in (trained, judged)]
    shared = sorted({*names[0]} & {*names[1]})
    if shared:
        shown = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
        raise ConfigError(
            f"{len(shared)} of its {len(names[1])} people are trained on ({shown}), and a face "
            "that was seen says nothing of others; give folders of other people as data.probe"
        )


def _unanswered(run: StudentRun) -> bool:
    """True where a run's method reads logits of a teacher that has none for the data's classes."""
    before = run.method.prelude()
    needs = run.method.needs() | (before.method.needs() if before else Signal(0))
    return bool(_of_other_classes(run) and needs & (Signal.LOGITS | Signal.CLASSIFIER))


def _of_other_classes(run: StudentRun) -> list[TeacherRun]:
    """The teachers of a run that have no logits of its data's classes."""
    teachers = [teacher for teacher in run.members() if isinstance(teacher, TeacherRun)]
    return [teacher for teacher in teachers if not teacher.answers_classes]


def _refuse_logits(run: StudentRun, methods: list[str]) -> str:
    """A sentence on a method that reads logits of other classes, and on `methods` that do not."""
    teacher = _of_other_classes(run)[0]
    classes, count = run.data.resolved().classes, teacher.own_classes()
    subject = f"method {run.method.label!r} reads the teacher's logits, and {teacher.model}"
    others = f"a method that reads none ({', '.join(methods)})" if methods else "another teacher"
    if not count:
        return f"{subject} is an encoder, which has none; choose {others}"
    return (
        f"{subject} has those of {count} classes, the data {classes}; say with "
        f"run.teacher.classes which of them each class of the data is, or choose {others}"
    )


def _other_methods(run: StudentRun, student: Shapes, teacher: Shapes, targets: Tensor) -> list[str]:
    """The methods, with their defaults, that need no logits of the teacher and suit the run."""
    suitable = []
    for name, kind in METHODS.items():
        with contextlib.suppress(ValueError):  # one that is refused, or has a field without default
            plain = {**dict(run), "method": kind(name=name), "label_weight": None}
            other = StudentRun(**plain)
            taught = other.method.needs() or other.method.prelude()
            if taught and not _unanswered(other):
                dry_run.check_method(other, student, teacher, targets, shared=False)
                suitable.append(name)
    return suitable


def _least_share(rows: int, batch: int, workers: Workers, parts: int) -> int:
    """The fewest samples that a worker has at a time, with any number of workers.

    Raises `ConfigError` where the batches do not suit the images or the workers.
    """
    if isinstance(workers, int):
        world = max(1, workers)
        check_batch(rows, batch, world, parts)
        return batch // world // parts
    for world in range(least(workers), most(workers) + 1):
        check_uneven(rows, batch, world, parts)
    return batch // most(workers) // parts
