"""Route constrained optimisation: a student that learns from a teacher's checkpoints in turn.

Jin et al. 2019, arXiv 1904.09149 (ICCV). Easy checkpoints come first, the trained teacher last.
Every stage of a multi-stage route is a student of its own that goes on after the one before, so
routes that begin alike share their first stages.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from raykd.core.record import Limits, Recipe, Record
from raykd.methods.base import Looks, Method
from raykd.recipes.student import PanelRun, StudentRun, check_student
from raykd.recipes.teacher import TeacherRun
from raykd.teachers.anchor_route import Route, equal_by_count, equal_by_interval

Stages = Literal["multi_stage", "one_stage"]
_ANCHORS = 4  # anchors by default: as many as a greedy search typically ends with
_REGRESSION = ("fitnet", "mimic_embedding", "mimic_logits", "angular")  # hint and mimic learning


class RCO(Record):
    """Choice of a route, as `run.rco` of an experiment file describes it.

    `select: equal` takes checkpoints at equal intervals of the teacher's epochs. `select: greedy`
    goes to the farthest checkpoint whose relative hardness r is at most `threshold`, each time
    after a stage of training; it needs `run.data.validation`. Of the student's distances d, r is
    d(a later checkpoint) / d(its own) as a `ratio`, and one less as a `relative_change`. Both
    networks are compared as the method does: by normalised logits for `spherical_kd`, by the
    method's loss for hints and mimics.

    The paper's equation, threshold, temperature and direction of the divergence were not at hand:
    they are decided here, and so are the default number of anchors and the epochs of a stage
    (`run.optim`). One public account has numbers, a reader's notes that reproduce the paper's
    figures: a relative change above 0.8, so a ratio of 1.8, for MobileNetV2, on 10,000 random
    validation images. That is `hardness: relative_change`, and `run.data.validation: 0.2` for
    CIFAR.

    Losses have the method's weights: `kd` weighs 0.9 against the labels' 0.1. A plain sum, which
    the paper may mean, is `{name: kd, weight: 1.0}` with `run.label_weight: 1.0`.
    """

    select: Literal["equal", "greedy"] = "equal"
    """Choice of checkpoints: at equal intervals, or by their hardness for the student."""
    anchors: int | None = Field(default=None, ge=1, le=Limits.EPOCHS)
    """Number of checkpoints; null: 4. With `greedy` the largest number; null: any."""
    interval: int | None = Field(default=None, ge=1, le=Limits.EPOCHS)
    """Teacher epochs between two checkpoints, in place of `anchors`; null: by `anchors`."""
    stages: Stages = "multi_stage"
    """One schedule for each checkpoint, or one that all share equally."""
    hardness: Literal["ratio", "relative_change"] = "ratio"
    """Form of the hardness r: a ratio of distances, or one less."""
    threshold: float | None = Field(default=None, gt=0, le=Limits.RATE)
    """Largest hardness r of the next checkpoint; null: 1.6 of a ratio, 0.8 of a change."""
    temperature: float = Field(default=1.0, gt=0, le=Limits.TEMPERATURE)
    """Temperature of the divergence that measures distances."""
    measure: Literal["auto", "kl", "loss"] = "auto"
    """Distance: a divergence or the method's loss; auto: the loss for hints and mimics."""

    @model_validator(mode="after")
    def _check(self) -> "RCO":
        if self.interval is not None and (self.anchors is not None or self.select == "greedy"):
            raise ValueError("interval goes with select: equal, and stands in place of anchors")
        return self

    def ratio(self) -> float:
        """The threshold of the ratio of two distances."""
        if self.hardness == "ratio":
            return 1.6 if self.threshold is None else self.threshold
        return 1 + (0.8 if self.threshold is None else self.threshold)

    def students(self, run: StudentRun) -> "StudentRun | SearchedStudent":
        """The student that learns along the route, or the search that has to find the route first.

        A student with one anchor, or whose method reads no teacher, stays as it is. Raises
        `ValueError` where teacher and route do not suit each other.
        """
        if not run.method.needs():
            return run
        if run.teacher is None or run.route is not None:
            raise ValueError(
                "it chooses the route through a teacher: add run.teacher, and leave run.route out"
            )
        if self.anchors == 1:
            return run
        if isinstance(run.teacher, PanelRun):
            raise ValueError(
                "a route leads through one teacher's epochs, and run.teacher is a panel; leave "
                "run.rco out, or name one teacher"
            )
        if isinstance(run.teacher, StudentRun):
            raise ValueError(
                "the teacher is an assistant, of which the last checkpoint alone is there; leave "
                "run.rco or run.assistants out"
            )
        if run.teacher.is_given and self.anchors is not None:
            raise ValueError(
                f"{self.anchors} anchors are asked for, and a given teacher is one; leave rco out"
            )
        saved = run.teacher.anchors()
        if self.select == "equal":
            if self.interval is not None:
                anchors = equal_by_interval(saved, self.interval)
            else:
                anchors = equal_by_count(saved, self.anchors or min(_ANCHORS, len(saved)))
            return along(run, anchors, self.stages)
        if len(saved) == 1:
            return run
        measure = self.measure
        if measure == "auto":
            measure = "loss" if run.method.name in _REGRESSION else "kl"
        search = Search(
            student=run,
            threshold=self.ratio(),
            temperature=self.temperature,
            measure=measure,
            at_most=self.anchors,
        )
        return SearchedStudent(search, self.stages)


class Search(Recipe):
    """A greedy search for anchors, which trains a student from each anchor to the next."""

    kind: ClassVar[str] = "searches"
    student: StudentRun  # without a route
    threshold: float = Field(gt=0, le=Limits.RATE)
    temperature: float = Field(gt=0, le=Limits.TEMPERATURE)
    measure: Literal["kl", "loss"]
    at_most: int | None = Field(ge=1, le=Limits.EPOCHS)  # anchors

    @model_validator(mode="after")
    def _check(self) -> "Search":
        if self.student.data.validation is None:
            raise ValueError(
                "the greedy choice of anchors measures on images that nothing is trained on; add "
                "run.data.validation, such as 0.2: the share that the experiment holds out"
            )
        _check_unseen(self.student)
        reason = _no_measure(self.student.method) if self.measure == "loss" else None
        if reason is not None:
            raise ValueError(
                f"method {self.student.method.label!r} {reason}, so its loss is no measure between "
                "checkpoints; use rco.measure: kl"
            )
        if self.measure == "kl" and not self.student.task.keeps_logits:
            raise ValueError(
                f"task {self.student.task.name!r} compares embeddings, and a divergence compares "
                "logits; use rco.measure: loss"
            )
        self.stage(self.candidates()[:1])  # raises where a stage cannot be
        return self

    def candidates(self) -> tuple[int, ...]:
        """The teacher's saved epochs; the first is the first anchor."""
        assert self.student.teacher is not None
        return self.student.teacher.anchors()

    def stage(self, anchors: tuple[int, ...]) -> StudentRun:
        """The student after the stages of these anchors."""
        return along(self.student, anchors, "multi_stage")


@dataclass(frozen=True)
class SearchedStudent:
    """The student of a route that a search still has to find."""

    search: Search
    stages: Stages

    def along(self, anchors: tuple[int, ...]) -> StudentRun:
        """The student of the route with these anchors."""
        return along(self.search.student, anchors, self.stages)


def along(run: StudentRun, anchors: tuple[int, ...], stages: Stages) -> StudentRun:
    """The student that learns from these checkpoints of its teacher in turn.

    `multi_stage`: a stage for each, with the run's whole schedule and a fresh optimiser, from the
    weights of the stage before. `one_stage`: one schedule, shared equally; where there are more
    anchors than epochs, some are left out.
    Raises `ValueError` where teacher and route do not suit each other.
    """
    assert run.teacher is not None
    last, epochs = run.teacher.anchors()[-1], run.optim.epochs
    if stages == "one_stage" and len(anchors) > 1:
        count = len(anchors)
        if count > epochs:  # an epoch each, spread over all and with the last at the end
            anchors = tuple(anchors[-(-(e + 1) * count // epochs) - 1] for e in range(epochs))
        starts = tuple(number * epochs // len(anchors) for number in range(len(anchors)))
        return _checked(run, Route(anchors=anchors, starts=starts), run.after)
    stage = run.after
    for anchor in anchors:
        route = None if anchor == last else Route(anchors=(anchor,))
        stage = _checked(run, route, stage)
    assert stage is not None
    return stage


def _checked(run: StudentRun, route: Route | None, after: StudentRun | None) -> StudentRun:
    start = run.weights if after is None else None
    changed = run.model_copy(update={"route": route, "after": after, "weights": start})
    check_student(changed)
    return changed


def _check_unseen(run: StudentRun) -> None:
    """Raise `ValueError` where the teacher learns from images that the student's data hold out."""
    teacher = run.teacher
    if not isinstance(teacher, TeacherRun) or teacher.is_given:
        return
    for key in ("name", "holdout", "validation", "seed"):
        mine, theirs = getattr(run.data, key), getattr(teacher.data, key)
        if mine != theirs:
            raise ValueError(
                f"the teacher learns from images that are held out: run.data.{key} is {mine!r} and "
                f"run.teacher.data.{key} is {theirs!r}; give both the same"
            )


def _no_measure(method: Method) -> str | None:
    """Reason why a method's loss cannot be measured on single images; None where it can."""
    if method.looks() != Looks():
        return "reads several looks at a sample"
    reasons = {"crd": "remembers training samples", "sakd": "decides what to compare"}
    parts = [part.name for part in getattr(method, "combine", (method,))]
    return next((reasons[name] for name in parts if name in reasons), None)
