"""What determines a student, and the training that some methods have done before."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from raykd.data.images import Data
from raykd.data.mixing import Mix
from raykd.data.strong import Strong
from raykd.methods import AnyMethod, AnyPrelude
from raykd.methods.base import Method, Schedule, at
from raykd.methods.label_only import LabelOnly
from raykd.recipes.optim import Optim, Precision
from raykd.recipes.teacher import LogitsRun, Network, TeacherRun
from raykd.record import Record
from raykd.teachers.route import Route
from raykd.types import CACHEABLE, Look, Signal


class StudentRun(Record):
    """One student: what is trained, on what, by which method, from which teacher."""

    kind: ClassVar[str] = "students"

    model: Network
    data: Data
    teacher: TeacherRun | None = None
    route: Route | None = None  # None: the teacher's last epoch throughout
    method: AnyMethod = LabelOnly()  # pyright: ignore[reportInvalidTypeForm]
    label_weight: Schedule | None = None  # of the labels' cross entropy; None: the method's own
    optim: Optim = Optim()
    views: int | Literal["all"] = "all"  # different augmentations that the epochs go through
    source: Literal["auto", "cache", "live"] = (
        "auto"  # of the teacher's outputs; auto: cache if it can
    )
    strong: Strong = Strong()  # of the strongly augmented look, where the method takes one
    teacher_precision: Precision = "float32"  # of the teacher's forward
    precision: Precision = "float32"  # of the student's forward and backward
    seed: int = Field(default=0, ge=0)  # of the initial weights and the order

    @model_validator(mode="after")
    def _check(self) -> "StudentRun":
        needs, name = self.method.needs(), self.method.label
        if self.teacher is None and (needs or self.method.prelude()):
            raise ValueError(f"method {name!r} needs a teacher; add run.teacher")
        if self.source == "cache" and needs & ~CACHEABLE:
            raise ValueError(
                f"method {name!r} reads {needs & ~CACHEABLE}, which a cache does not hold; "
                "leave run.source out, or set it to live"
            )
        if self.method.mixing() and self.data.augment.mix:
            raise ValueError(
                f"method {name!r} mixes the samples itself; leave run.data.augment.mix out"
            )
        if Signal.PREACTIVATIONS in needs or _prelude_needs(self.method) & Signal.PREACTIVATIONS:
            for model in (self.model, self.teacher.model if self.teacher else ""):
                if "/" in model:
                    raise ValueError(
                        f"method {name!r} reads what stages are before their last ReLU, which "
                        f"{model} does not say; choose another method, or networks of "
                        "`raykd show models` whose names have no slash"
                    )
        if self.method.trains_teacher() and self.route is not None:
            raise ValueError(
                f"method {name!r} trains the teacher, and a route would change it on the way; "
                "leave run.route out"
            )
        if isinstance(self.method, LabelOnly) and self.label_weight is not None:
            raise ValueError(
                "label_weight scales the only loss of method 'label_only'; leave it out, or give "
                "the weight with the method that it is for"
            )
        if isinstance(self.views, int) and self.views < 1:
            raise ValueError(f"views: {self.views} is not a number of views; use 1 or more")
        self._check_route()
        return self

    def _check_route(self) -> None:
        """Raise `ValueError` where the route asks for what teacher or student do not have."""
        if self.route is None:
            return
        if self.teacher is None:
            raise ValueError("a route leads through a teacher's epochs; add run.teacher")
        saved = self.teacher.anchors()
        for anchor in self.route.anchors:
            if anchor > saved[-1]:
                raise ValueError(f"anchor {anchor} lies beyond the teacher's {saved[-1]} epochs")
            if anchor not in saved:
                raise ValueError(
                    f"anchor {anchor} is not among the teacher's saved epochs {list(saved)}; "
                    "choose teacher.save_every so that it is"
                )
        if self.route.starts[-1] >= self.optim.epochs:
            raise ValueError(
                f"the last anchor starts at epoch {self.route.starts[-1]} of {self.optim.epochs}"
            )

    def cached(self) -> bool:
        """Whether the teacher's outputs come from a cache."""
        return self.source != "live" and not self.method.needs() & ~CACHEABLE

    def shown(self, look: Look = "given") -> Data:
        """The data as training batches show them, or as one of the other looks does."""
        augment = self.data.augment
        mixing = self.method.mixing()
        if look == "strong":
            augment = augment.unmixed().model_copy(update={"strong": self.strong})
        elif look in ("clean", "partner"):
            augment = augment.unmixed()
        elif mixing is not None:
            kind, alpha = mixing
            augment = augment.model_copy(update={"mix": Mix(kind=kind, alpha=alpha)})
        return self.data.model_copy(update={"augment": augment})

    def looks(self) -> Mapping[Look, Data]:
        """The looks besides the given one that student or teacher are asked about."""
        looks = self.method.looks()
        wanted = dict.fromkeys((*looks.student, *looks.teacher))
        return {look: self.shown(look) for look in wanted if look != "given"}

    def prelude(self) -> "PreludeRun | None":
        """What is to be trained before, where the method asks for it."""
        before = self.method.prelude()
        if before is None:
            return None
        assert self.teacher is not None
        alone = before.method.trains == "helpers"  # the student has no part in it
        plain = {"schedule": "constant", "milestones": None, "warmup_epochs": 0, "ema": None}
        rates = {"epochs": before.epochs, "lr": before.lr or self.optim.lr}
        return PreludeRun(
            model=None if alone else self.model,
            teacher=self.teacher,
            data=self.shown(),
            method=before.method,
            optim=self.optim.model_copy(update=plain | rates),
            views=self.views,
            teacher_precision=self.teacher_precision,
            precision=self.precision,
            seed=0 if alone else self.seed,
        )

    def view_count(self) -> int:
        """How many different views the epochs go through."""
        distinct = self.shown().augment.views() if self.views == "all" else self.views
        return min(distinct, self.optim.epochs)

    def view_at(self, epoch: int) -> int:
        """The view that an epoch (from 0) shows."""
        return epoch % self.view_count()

    def anchor_at(self, epoch: int) -> int:
        """The teacher's epoch that supervises a student epoch (from 0)."""
        assert self.teacher is not None
        return self.route.at(epoch) if self.route else self.teacher.anchors()[-1]

    def label_weight_at(self, epoch: int) -> float:
        """The weight of the labels' cross entropy in an epoch (from 0)."""
        weight = self.method.label_weight if self.label_weight is None else self.label_weight
        return at(weight, epoch)

    def logits_at(self, epoch: int, look: Look = "given") -> LogitsRun:
        """The cache that an epoch (from 0) of a cached run reads for one look."""
        assert self.teacher is not None
        return LogitsRun(
            teacher=self.teacher,
            anchor=self.anchor_at(epoch),
            data=self.shown(look),
            embedding=Signal.EMBEDDING in self.method.needs(),
            precision=self.teacher_precision,
        )

    def test_logits(self) -> LogitsRun | None:
        """The cache of the teacher's outputs for the test images, to compare answers with."""
        if self.teacher is None:
            return None
        return LogitsRun(
            teacher=self.teacher,
            anchor=self.anchor_at(self.optim.epochs - 1),
            data=self.data.test(),
            split="test",
            precision=self.teacher_precision,
        )


class PreludeRun(Record):
    """Training that comes before some methods' own: a paraphraser, or a student's first stages.

    Every student whose recipe asks for the same one shares it.
    """

    kind: ClassVar[str] = "preludes"

    model: Network | None  # None: the student has no part in it
    teacher: TeacherRun
    data: Data
    method: AnyPrelude  # pyright: ignore[reportInvalidTypeForm]
    optim: Optim
    views: int | Literal["all"]
    teacher_precision: Precision
    precision: Precision
    seed: int = Field(ge=0)

    def training(self) -> StudentRun:
        """Its training, as a student's whose method is not one that a student can have."""
        run = StudentRun(
            model=self.model or self.teacher.model,
            data=self.data,
            teacher=self.teacher,
            optim=self.optim,
            views=self.views,
            source="live",
            teacher_precision=self.teacher_precision,
            precision=self.precision,
            seed=self.seed,
        )
        return run.model_copy(update={"method": self.method})


def training_of(teacher: TeacherRun) -> StudentRun:
    """The training of a teacher, which is that of a student who has no teacher."""
    return StudentRun(
        model=teacher.model,
        data=teacher.data,
        optim=teacher.optim,
        precision=teacher.precision,
        seed=teacher.seed,
    )


def _prelude_needs(method: Method) -> Signal:
    """The signals that what comes before a method reads."""
    before = method.prelude()
    return before.method.needs() if before else Signal(0)
