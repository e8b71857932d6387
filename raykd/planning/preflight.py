"""Checks of everything that an experiment will train, before anything is trained.

Networks are made and asked, methods are held against the two networks, batches against the images
and the workers. A grid of students that differ in rates and seeds costs what one of them does.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor

from raykd.config.experiment import Experiment, basis
from raykd.config.messages import Mistakes
from raykd.config.overrides import value_at, within
from raykd.config.resolve import ALIKE
from raykd.config.scale import Workers, least, most
from raykd.core.errors import CacheCorrupt, CacheMismatch, ConfigError
from raykd.core.types import Shapes
from raykd.data.dataset import open_images, open_split
from raykd.data.loading.sampler import check_batch, check_uneven
from raykd.data.recipe import Data, ResolvedData
from raykd.planning.estimate import missing_rows
from raykd.planning.plan import plan
from raykd.recipes import PreludeRun, StudentRun, TeacherRun, Training, training_of
from raykd.storage.store import Store
from raykd.tracking import check_trackers
from raykd.training import dry_run
from raykd.training.cache_builder import check_room, needed_bytes
from raykd.training.inputs import serving

_DATA_KEY = re.compile(r"run\.(data[.\w]*): ")  # that a mistake in images begins with
Found = tuple[tuple[str, str], ...]  # mistakes: the key within a run, and a sentence

_Value = TypeVar("_Value")


def preflight(experiment: Experiment, store: Store) -> None:
    """Raise `ConfigError`, with every mistake, where a resolved experiment cannot be carried out.

    What is in the store already is not looked at.
    """
    check_trackers(experiment.scale.track)
    mistakes, look = Mistakes(experiment.places), _Look(experiment, store)
    several = len(experiment.runs) > 1
    for run in experiment.runs:
        student = basis(run)
        label = f"{student.method.label} {student.model} seed {student.seed}" if several else None
        lines: dict[str, None] = {}
        for place, data, piece in _pieces(student, experiment):
            found = look.at(piece)
            for key, text in () if found and store.has(piece) else found:
                where = data if key.startswith("data") else place
                text = text.replace("run.optim.batch", f"{place}.optim.batch")
                lines[f"experiment.{where}.{key}: {text}"] = None
        for line in () if lines and isinstance(run, StudentRun) and store.has(run) else lines:
            mistakes.add(line, label)
    mistakes.raise_all()


def check_disk(experiment: Experiment, store: Store) -> None:
    """Raise `NoRoom` where the caches that the known students lack do not fit on the disk."""
    work = plan(experiment.students(), store.has)
    wanted = 0
    for job in work.caches:
        # One whose manifest is damaged, or another's, stops its own students alone, later.
        with contextlib.suppress(CacheCorrupt, CacheMismatch):
            if serving(store, job.run, job.views) == job.run:
                rows = len(open_split(store, job.run.data, job.run.split))
                wanted += needed_bytes(job.run, missing_rows(store, job, rows))
    check_room(store, wanted)


def _pieces(run: StudentRun, experiment: Experiment) -> Iterator[tuple[str, str, Training]]:
    """A student and everything trained for it, each with its key in the file.

    The second key is of the part whose data it has: a teacher's may be the student's.
    """
    space = experiment.space
    base = {} if space is None else dict(space.base)
    axes = () if space is None else (*space.grid, *space.search)

    def given(key: str) -> bool:
        try:
            value_at(base, key)
        except LookupError:
            return any(within(axis[4:], key) for axis in axes)
        return True

    assisted, routed = given("run.assistants"), given("run.rco")

    def pieces(run: StudentRun, place: str, data: str) -> Iterator[tuple[str, str, Training]]:
        teacher, before = run.teacher, run.prelude()
        own = f"{place}.teacher"
        if isinstance(teacher, StudentRun):
            own = "run.assistants" if assisted else own
            yield from pieces(teacher, own, own if given(f"{own}.data") else data)
        elif teacher is not None:
            own = "run.teacher" if assisted else own
            yield own, own if given(f"{own}.data") else data, teacher
        if run.after is not None:
            after = place if routed else f"{place}.after"
            yield from pieces(run.after, after, after)
        if before is not None:
            yield place, data, before
        yield place, data, run

    return pieces(run, "run", "run")


class _Look:
    """Looks at trainings, at each thing that they have in common once."""

    def __init__(self, experiment: Experiment, store: Store) -> None:
        self._experiment = experiment
        self._store = store
        self._known: dict[Any, Any] = {}

    def at(self, piece: Training) -> Found:
        """Mistakes of a training."""
        experiment = self._experiment
        if isinstance(piece, TeacherRun):
            if piece.weights is not None:
                return self._once(("given", piece), lambda: self._given(piece))
            run, workers = training_of(piece), experiment.teacher_workers(piece)
        else:
            workers = experiment.workers(piece)
            run = piece.training() if isinstance(piece, PreludeRun) else piece
        optim, plain = run.optim, {"optim": None, "seed": 0, "route": None, "after": None}
        alike = run.model_copy(update=plain | {"first_epoch": 0, "views": "all"})
        key = (type(piece), alike, optim.batch, workers)
        return self._once(key, lambda: tuple(dict.fromkeys(self._trained(piece, run, workers))))

    def _once(self, key: Any, value: Callable[[], _Value]) -> _Value:
        """A value that is computed once."""
        if key not in self._known:
            self._known[key] = value()
        return self._known[key]

    def _trained(
        self, piece: Training, run: StudentRun, workers: Workers
    ) -> Iterator[tuple[str, str]]:
        """Mistakes of a training that goes through images."""
        targets, wrong = self._once(run.data, lambda: self._targets(run.data))
        if targets is None:
            yield from wrong
            return
        scale = self._experiment.scale
        parts = scale.accumulate
        rows, batch = len(targets), run.optim.batch
        key = ("shares", rows, batch, workers)
        try:
            share = self._once(key, lambda: _least_share(rows, batch, workers, parts))
        except ConfigError as error:
            yield "optim.batch", str(error)
            share = 2
        alone = isinstance(piece, PreludeRun) and piece.model is None
        shapes, wrong = self._shapes(run.model, run.data.resolved())
        yield from () if alone else wrong
        if shapes is None:
            return
        if not alone:
            wrong = self._trainable(run, share)
            yield from wrong
            if wrong:
                return
        teacher = run.teacher
        if teacher is None or not run.method.needs():
            return
        seen = run.as_teacher_sees(run.data).resolved()
        theirs, wrong = self._shapes(teacher.model, seen, "teacher.model")
        yield from wrong
        if theirs is None:
            return
        try:
            shared = scale.shard == "fsdp" and most(workers) > 1
            dry_run.check_method(run, shapes, theirs, targets.unique(), shared=shared)
        except ConfigError as error:
            yield "method", str(error)
            return
        if share == 1:
            try:
                dry_run.check_step(run, targets)
            except ConfigError as error:
                yield "optim.batch", str(error)

    def _trainable(self, run: StudentRun, share: int) -> Found:
        """Mistakes of a network that is trained on `share` samples at a time."""
        data = run.data.resolved()
        classes, size = data.classes, data.size

        def check() -> Found:
            try:
                dry_run.check_training(run.model, classes, size, share)
            except dry_run.OneValue as error:
                return (("optim.batch", str(error)),)
            except ConfigError as error:
                return (("model", str(error)),)
            return ()

        return self._once(("trainable", run.model, classes, size, min(share, 2)), check)

    def _shapes(
        self, model: str, data: ResolvedData, key: str = "model"
    ) -> tuple[Shapes | None, Found]:
        """The sizes of a network's answers to images of a size, or its mistake."""
        classes, size = data.classes, data.size

        def measured() -> tuple[Shapes | None, str]:
            try:
                return dry_run.shapes_of(model, classes, size), ""
            except ConfigError as error:
                return None, str(error)

        shapes, why = self._once(("shapes", model, classes, size), measured)
        return shapes, () if shapes is not None else ((key, why),)

    def _given(self, teacher: TeacherRun) -> Found:
        """Mistakes of a teacher whose weights are given."""
        assert teacher.weights is not None
        library, slash, name = teacher.model.partition("/")
        if slash and not teacher.weights.startswith("sha256:"):
            from raykd.models import libraries  # torchvision takes seconds to import

            known = libraries.published_classes(library, name, teacher.weights)
            if known != teacher.data.classes:
                return (
                    (
                        "weights",
                        f"{teacher.weights!r} of {teacher.model} knows {known} classes, and the "
                        f"student's data have {teacher.data.classes}; {ALIKE}",
                    ),
                )
        return self._shapes(teacher.model, teacher.data.resolved())[1]

    def _targets(self, data: Data) -> tuple[Tensor | None, Found]:
        """The labels of the training rows, or what is wrong with what a recipe holds out."""
        try:
            return open_images(self._store, data)[0].targets, ()
        except ConfigError as error:
            keyed = _DATA_KEY.match(str(error))
            text = str(error)[keyed.end() :] if keyed else str(error)
            return None, ((keyed[1] if keyed else "data", text),)


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
