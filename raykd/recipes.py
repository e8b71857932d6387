"""What determines a result: frozen values whose fingerprint names the artefact.

How a run is carried out (workers, GPUs, paths, logging) is no part of them. Recipes nest by
value, so a change in the teacher's learning rate changes the name of everything downstream.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from raykd import models
from raykd.data.images import Data
from raykd.methods import AnyMethod
from raykd.methods.base import Schedule, at
from raykd.methods.label_only import LabelOnly
from raykd.record import Record
from raykd.teachers.route import Route
from raykd.types import CACHEABLE, Signal

Precision = Literal["float32", "bfloat16"]
Split = Literal["train", "test"]


def _network(name: str) -> str:
    models.check_name(name)
    return name


Network = Annotated[str, AfterValidator(_network)]


class Optim(Record):
    """The optimiser and its schedule. The defaults are the CRD benchmark's for CIFAR.

    Epochs are counted from 0: a milestone of 150 is the first epoch with the lower rate. A
    last partial batch of an epoch is dropped, which the benchmark does not do; what is
    dropped differs in every epoch.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    epochs: int = Field(default=240, ge=1)
    batch: int = Field(default=64, ge=1)  # global: over all workers
    lr: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)  # of sgd
    nesterov: bool = False  # of sgd
    weight_decay: float = Field(default=5e-4, ge=0)  # of every parameter
    schedule: Literal["multistep", "cosine", "constant"] = "multistep"
    milestones: tuple[int, ...] | None = None  # epochs; None: 5/8, 3/4 and 7/8 of them
    gamma: float = Field(default=0.1, gt=0)  # the rate's factor at each milestone
    warmup_epochs: int = Field(default=0, ge=0)  # the rate grows linearly, step by step
    clip: float | None = Field(default=None, gt=0)  # largest L2 norm of all gradients
    ema: float | None = Field(default=None, gt=0, lt=1)  # decay per step of the averaged weights

    @model_validator(mode="after")
    def _check(self) -> "Optim":
        late = [epoch for epoch in self.milestones or () if epoch >= self.epochs]
        if late:
            raise ValueError(
                f"milestone {late[0]} lies beyond the {self.epochs} epochs; "
                "leave milestones out to scale them with the epochs"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"{self.warmup_epochs} epochs of warm-up leave none of the {self.epochs} epochs"
            )
        return self


class TeacherRun(Record):
    """A teacher: trained here with the labels, or read from published or given weights."""

    kind: ClassVar[str] = "teachers"

    model: Network
    data: Data  # trained on; of a pretrained one, only the normalisation counts
    optim: Optim = Optim()
    precision: Precision = "float32"
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=10, ge=1)  # epochs between saved anchors (the last one always)
    weights: str | None = None  # a published name, or "sha256:..." of a file in the store

    def anchors(self) -> tuple[int, ...]:
        """The epochs at which its weights are saved, in order; 0 alone for a pretrained one."""
        if self.weights is not None:
            return (0,)
        last = self.optim.epochs
        return (*range(self.save_every, last, self.save_every), last)

    def training(self) -> "StudentRun":
        """Its training, which is that of a student who has no teacher."""
        return StudentRun(
            model=self.model,
            data=self.data,
            optim=self.optim,
            precision=self.precision,
            seed=self.seed,
        )


class LogitsRun(Record):
    """The outputs of one teacher checkpoint over one split of one dataset.

    Which views are there is not part of it: a cache grows view by view.
    """

    kind: ClassVar[str] = "caches"

    teacher: TeacherRun
    anchor: int  # the checkpoint's epoch
    data: Data
    split: Split = "train"
    codec: Literal["dense"] = "dense"
    embedding: bool = False  # whether pooled features are stored beside the logits
    precision: Precision = "float32"  # of the teacher's forward

    def signals(self) -> Signal:
        """What the cache can answer."""
        return Signal.LOGITS | (Signal.EMBEDDING if self.embedding else Signal(0))


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
    teacher_precision: Precision = "float32"  # of the teacher's forward
    precision: Precision = "float32"  # of the student's forward and backward
    seed: int = Field(default=0, ge=0)  # of the initial weights and the order

    @model_validator(mode="after")
    def _check(self) -> "StudentRun":
        needs, name = self.method.needs(), self.method.name
        if needs and self.teacher is None:
            raise ValueError(f"method {name!r} needs a teacher; add run.teacher")
        if self.source == "cache" and needs & ~CACHEABLE:
            raise ValueError(
                f"method {name!r} reads {needs & ~CACHEABLE}, which a cache does not hold; "
                "leave run.source out, or set it to live"
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

    def view_count(self) -> int:
        """How many different views the epochs go through."""
        distinct = self.data.augment.views() if self.views == "all" else self.views
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

    def logits_at(self, epoch: int) -> LogitsRun:
        """The cache that an epoch (from 0) of a cached run reads."""
        assert self.teacher is not None
        return LogitsRun(
            teacher=self.teacher,
            anchor=self.anchor_at(epoch),
            data=self.data,
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
