"""Given teachers as a plan shows them: their classes, and the images that they see."""

from collections.abc import Iterator
from dataclasses import dataclass

from raykd.config.experiment import Experiment, basis
from raykd.data.dataset import class_names
from raykd.models.weights_config import Names
from raykd.models.weights_import import configuration
from raykd.recipes import StudentRun, TeacherRun
from raykd.storage.store import Store


@dataclass(frozen=True)
class GivenTeacher:
    """A teacher with published or given weights, and how its students' images reach it."""

    model: str
    weights: str
    outputs: int  # classes of its own; 0 for an encoder
    mapped: dict[str, list[str]] | None  # class of the data -> its own: names, or indices
    size: tuple[int, int]  # (H, W) in pixels
    resize: int | None  # shorter side before that is cut from the centre; None: images in memory
    interpolation: str  # "" for images as they are
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    # What the weights say of their own input; None and "" where they do not.
    own_size: int | None
    own_interpolation: str

    def sentence(self, shown: int = 3) -> str:
        """One line, with the names of some classes."""
        classes = f"{self.outputs:,} classes" if self.outputs else "no classes, an embedding alone"
        if self.mapped is not None:
            pairs = [f"{name} = {' + '.join(its)}" for name, its in self.mapped.items()]
            more = ", ..." if len(pairs) > shown else ""
            classes += f", for the data's {len(pairs)}: {', '.join(pairs[:shown])}{more}"
        height, width = self.size
        sees = f"sees {height} x {width} pixels"
        if self.resize is not None:
            sees += f" from a shorter side of {self.resize}"
        sees += f", {self.interpolation}" if self.interpolation else ", as they are"
        if self.own_size is not None:
            own = f", {self.own_interpolation}" if self.own_interpolation else ""
            sees += f" (its weights: {self.own_size}{own})"
        mean, std = (" ".join(f"{value:g}" for value in row) for row in (self.mean, self.std))
        return f"{self.model} ({self.weights}): {classes}; {sees}; mean {mean}, std {std}"


def given_teachers(experiment: Experiment, store: Store) -> list[GivenTeacher]:
    """The given teachers of a resolved experiment, each once for each way to be seen."""
    pairs = (pair for run in experiment.runs for pair in _pairs(basis(run)))
    # Students of equal data are shown the same.
    distinct = {(teacher, run.data): run for run, teacher in pairs}
    given = [_given(store, run, teacher) for (teacher, _), run in distinct.items()]
    return [one for number, one in enumerate(given) if one not in given[:number]]


def _pairs(run: StudentRun) -> Iterator[tuple[StudentRun, TeacherRun]]:
    """The given teachers of a student and of those before it, each with the student it teaches."""
    for member in run.members():
        if isinstance(member, StudentRun):
            yield from _pairs(member)
        elif isinstance(member, TeacherRun) and member.is_given:
            yield run, member
    if run.after is not None:
        yield from _pairs(run.after)


def _given(store: Store, run: StudentRun, teacher: TeacherRun) -> GivenTeacher:
    assert teacher.weights is not None
    said = configuration(teacher.weights, teacher.model)
    seen, own = run.as_teacher_sees(run.data, teacher).resolved(), teacher.data.resolved()
    groups, mapped = teacher.groups(), None
    if groups is not None:
        names = class_names(store, run.data.resolved())
        theirs = said.names if len(said.names) == teacher.own_classes() else ()
        mapped = {
            name: [_name(theirs, index) for index in group]
            for name, group in zip(names, groups, strict=True)
        }
    size = (teacher.size, teacher.size) if teacher.size else seen.size
    resized = "bicubic" if seen.stream is None and size != seen.size else ""
    return GivenTeacher(
        model=teacher.model,
        weights=teacher.weights[:20],
        outputs=teacher.own_classes(),
        mapped=mapped,
        size=size,
        resize=None if seen.stream is None else seen.stream.resize,
        interpolation=resized if seen.stream is None else seen.stream.interpolation,
        mean=own.mean,
        std=own.std,
        own_size=said.side,
        own_interpolation=said.interpolation,
    )


def _name(names: Names, index: int) -> str:
    """The first name of a teacher's class, or its number where it has none."""
    return names[index][0] if names else str(index)
