"""StudentRun: the recipe of a student; PreludeRun: of a training that some methods need before."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from raykd.core.record import Limits, Recipe
from raykd.core.types import CACHEABLE, Look, Signal
from raykd.data.recipe import AnyData, Data
from raykd.data.transforms.mixing import Mix
from raykd.data.transforms.strong import Strong
from raykd.methods import AnyMethod, AnyPrelude
from raykd.methods.base import Schedule, value_at
from raykd.methods.label_only import LabelOnly
from raykd.outputs.codecs import AnyCodec, Dense
from raykd.recipes.consistency import check_student
from raykd.recipes.optim import Optim, Precision
from raykd.recipes.outputs import LogitsRun
from raykd.recipes.teacher import Network, TeacherRun
from raykd.teachers.route import Route

Views = Annotated[int, Field(le=Limits.ROWS)]  # different augmentations


class StudentRun(Recipe):
    """One student: what is trained, on what, by which method, from which teacher.

    Its teacher may be a student itself: the assistant of a chain (TAKD, Mirzadeh et al. 2020, arXiv
    1902.03393). And it may go on `after` another one: the stage before in route constrained
    optimisation, whose weights it begins with.

    `label_smoothing` e makes (1 - e) * target + e / C of a target over C classes, mixed ones
    included. It is that of the labels' cross entropy in training: methods' own losses and all that
    evaluation says have none.

    Students that differ in their seed alone see the same views, which is what lets them share a
    cache; a deviation over seeds then lacks what other augmentations would add. `views_by_seed`
    draws them by the student's seed, and each seed wants a cache of its own.
    """

    kind: ClassVar[str] = "students"
    model: Network
    data: AnyData
    teacher: "AnyTeacher | None" = None
    route: Route | None = None  # None: the teacher's last epoch throughout
    after: "StudentRun | None" = None  # whose weights it begins with; None: random ones
    first_epoch: int = Field(
        default=0, ge=0, le=Limits.ROWS
    )  # by which views, order and methods' schedules go on
    method: AnyMethod = LabelOnly()  # pyright: ignore[reportInvalidTypeForm]
    label_weight: Schedule | None = None  # on the labels' cross entropy; None: the method's own
    label_smoothing: float = Field(default=0.0, ge=0, le=1)  # as torch.nn.CrossEntropyLoss has it
    optim: Optim = Optim()
    views: Views | Literal["all"] = "all"  # different augmentations that the epochs go through
    views_by_seed: bool = False  # each seed has views, and caches of them, of its own
    source: Literal["auto", "cache", "live"] = (
        "auto"  # source of the teacher's outputs; auto: cache if it can
    )
    # Of the cache of the training images, where there is one.
    codec: AnyCodec = Dense()  # pyright: ignore[reportInvalidTypeForm]
    strong: Strong = Strong()  # for the strongly augmented look, where the method takes one
    teacher_precision: Precision = "float32"  # in the teacher's forward
    precision: Precision = "float32"  # in the student's forward and backward
    seed: int = Field(default=0, ge=0, le=Limits.SEED)  # for the initial weights and the order

    @model_validator(mode="after")
    def _check(self) -> "StudentRun":
        check_student(self)
        return self

    def cached(self) -> bool:
        """True if the teacher's outputs come from a cache."""
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
        seed = self.seed if self.views_by_seed else self.data.view_seed
        return self.data.model_copy(update={"augment": augment, "view_seed": seed})

    def looks(self) -> Mapping[Look, Data]:
        """The looks besides the given one that student or teacher are asked about."""
        looks = self.method.looks()
        wanted = dict.fromkeys((*looks.student, *looks.teacher))
        shown = {look: self.shown(look) for look in wanted if look != "given"}
        if self.asked_at_another_size():
            shown["teacher"] = self.as_teacher_sees(self.shown())
        return shown

    def as_teacher_sees(self, data: Data) -> Data:
        """Streamed data at the teacher's resolution: the same parts of the same pictures."""
        own = self.teacher.data.stream if self.teacher is not None else None
        if own is None or data.stream is None or own == data.stream:
            return data
        return data.model_copy(update={"stream": own, "size": (own.size, own.size)})

    def asked_at_another_size(self) -> bool:
        """True if a live teacher runs in training, at another resolution than the student."""
        asked = self.method.needs() and not self.cached()
        return bool(asked) and self.as_teacher_sees(self.data) != self.data

    def prelude(self) -> "PreludeRun | None":
        """Recipe of the training before this one, if the method needs one."""
        before = self.method.prelude()
        if before is None:
            return None
        assert self.teacher is not None
        alone = before.method.trains == "helpers"  # the student has no part in it
        shared = self.shown().model_copy(update={"view_seed": self.data.view_seed})
        plain = {"schedule": "constant", "milestones": None, "warmup_epochs": 0, "ema": None}
        rates = {"epochs": before.epochs, "lr": before.lr or self.optim.lr}
        return PreludeRun(
            model=None if alone else self.model,
            teacher=self.teacher,
            data=shared if alone else self.shown(),
            method=before.method,
            optim=self.optim.model_copy(update=plain | rates),
            views=self.views,
            teacher_precision=self.teacher_precision,
            precision=self.precision,
            seed=0 if alone else self.seed,
        )

    def anchors(self) -> tuple[int, ...]:
        """The epochs at which its weights are saved: as a teacher it is a route of one."""
        return (self.optim.epochs,)

    def stages(self) -> tuple["StudentRun", ...]:
        """The students that it goes on after, in order, and itself."""
        return (*(self.after.stages() if self.after else ()), self)

    def all_epochs(self) -> int:
        """The epochs of its stages together."""
        return sum(stage.optim.epochs for stage in self.stages())

    def view_count(self) -> int:
        """Number of different views that the epochs go through."""
        distinct = self.shown().augment.views() if self.views == "all" else self.views
        return min(distinct, self.first_epoch + self.optim.epochs)

    def view_at(self, epoch: int) -> int:
        """The view that an epoch (from 0) shows."""
        return (self.first_epoch + epoch) % self.view_count()

    def anchor_at(self, epoch: int) -> int:
        """The teacher's epoch that supervises a student epoch (from 0); 0 without a teacher."""
        if self.route is not None:
            return self.route.at(epoch)
        return self.teacher.anchors()[-1] if self.teacher is not None else 0

    def label_weight_at(self, epoch: int) -> float:
        """The weight of the labels' cross entropy in an epoch (from 0)."""
        own = self.label_weight
        weight = self.method.weight_of_labels() if own is None else own
        return value_at(weight, epoch)

    def logits_at(self, epoch: int, look: Look = "given") -> LogitsRun:
        """The cache that an epoch (from 0) of a cached run reads for one look."""
        assert self.teacher is not None
        return LogitsRun(
            teacher=self.teacher,
            anchor=self.anchor_at(epoch),
            data=self.as_teacher_sees(self.shown(look)),
            **self.codec.recipe(),
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
            data=self.as_teacher_sees(self.data.test()),
            split="test",
            precision=self.teacher_precision,
        )

    def validation_logits(self, anchor: int) -> LogitsRun:
        """The cache of what the teacher of one epoch says about the validation images."""
        assert self.teacher is not None
        return LogitsRun(
            teacher=self.teacher,
            anchor=anchor,
            data=self.as_teacher_sees(self.data.held_out()),
            split="validation",
            embedding=Signal.EMBEDDING in self.method.needs(),
            precision=self.teacher_precision,
        )


class PreludeRun(Recipe):
    """Training that comes before some methods' own: a paraphraser, or a student's first stages.

    Every student whose recipe asks for the same one shares it.
    """

    kind: ClassVar[str] = "preludes"

    model: Network | None  # None: the student has no part in it
    teacher: "AnyTeacher"
    data: AnyData
    method: AnyPrelude  # pyright: ignore[reportInvalidTypeForm]
    optim: Optim
    views: Views | Literal["all"]
    teacher_precision: Precision
    precision: Precision
    seed: int = Field(ge=0, le=Limits.SEED)

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


def _kind_of_teacher(value: Any) -> str:
    """The class of a teacher: one that has a teacher itself is a student."""
    if isinstance(value, dict):
        value = StudentRun if value.get("teacher") else TeacherRun
        return value.__name__
    return type(value).__name__


AnyTeacher = Annotated[
    Annotated[TeacherRun, Tag("TeacherRun")] | Annotated[StudentRun, Tag("StudentRun")],
    Discriminator(_kind_of_teacher),
]
for _record in (LogitsRun, StudentRun, PreludeRun):
    _record.model_rebuild(_types_namespace={"AnyTeacher": AnyTeacher, "StudentRun": StudentRun})


def training_of(teacher: TeacherRun) -> StudentRun:
    """The training of a teacher, which is that of a student who has no teacher."""
    return StudentRun(
        model=teacher.model,
        data=teacher.data,
        label_smoothing=teacher.label_smoothing,
        optim=teacher.optim,
        precision=teacher.precision,
        seed=teacher.seed,
    )
