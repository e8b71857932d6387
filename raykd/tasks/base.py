"""Base class of tasks.

Shapes: B batch, C classes, D embedding width.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from raykd.core.record import Limits, Record
from raykd.core.types import Batch, Outputs, Signal
from raykd.data.recipe import AnyData, Split
from raykd.data.transforms.augment import Augment
from raykd.methods.base import Method
from raykd.models.staged import Staged

# Metrics by which students are compared, all of which are better the higher, and their headings.
HEADINGS: Mapping[str, str] = {
    "top1": "top-1 %",
    "knn_top1": "k-NN %",
    "linear_top1": "linear %",
    "cka": "CKA %",
    "recall_at_1": "recall@1 %",
    "map": "mAP %",
    "map_at_r": "MAP@R %",
    "verification": "verification %",
}


def headline_in(metrics: Mapping[str, Any]) -> str | None:
    """The headline among an epoch's metrics, a key of `HEADINGS`; None where there is none.

    Where a probe has judged, top-1 is beside what it is compared by.
    """
    names = (name for name in HEADINGS if name in metrics)
    return max(names, key=lambda name: name != "top1", default=None)


def headline_of(metrics: Mapping[str, Any]) -> str:
    """The headline among an epoch's metrics as text, as "top-1 41.70 %"; "" where there is none."""
    name = headline_in(metrics)
    return "" if name is None else f"{HEADINGS[name].removesuffix(' %')} {metrics[name]:.2f} %"


NO_ROWS = torch.empty(0, 0)


class LabelledSet(Record):
    """Labelled images, apart from the run's own, by which embeddings are judged. Abstract."""

    data: AnyData
    """Labelled images that judge; no student is trained on them."""
    every: int | None = Field(default=None, ge=1, le=Limits.EPOCHS)
    """Epochs between two judgements; null: after the last epoch alone."""

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if self.data.labels == "none":
            raise ValueError(
                "a probe compares predictions with labels, and data.labels is none; leave it out "
                "of the probe's data, or leave the probe out"
            )
        if self.data.limit is not None or self.data.augment != Augment():
            raise ValueError(
                "a probe knows all training images of its data as they are; leave data.limit and "
                "data.augment out"
            )
        return self

    def mirrored(self) -> bool:
        """True where the embedding of an image is the sum of its own and its mirror image's."""
        return False


class Embedded(NamedTuple):
    """Images by their embeddings; without rows where there are none, or a task asks for none."""

    labels: Tensor = NO_ROWS  # int64 [N]
    student: Tensor = NO_ROWS  # float32 [N, D]
    answer: Tensor = NO_ROWS  # float32, what `Task.answer` makes of them
    teacher: Tensor = NO_ROWS  # float32 [N, E]


class Task(Record):
    """The purpose of a student. A subclass is abstract or final.

    A test batch gives sums, which are added over batches and workers before they become metrics.
    What is no sum follows from the embeddings of all test images, which a task `collects`. A task
    with a field `probe`, a `LabelledSet`, is judged by the embeddings of its images, too.
    """

    labelled: ClassVar[bool] = True  # the student learns from labels, and has a classifier
    collects: ClassVar[bool] = False  # `collected` is called with the test images' embeddings
    embeds: ClassVar[bool] = False  # the finished student answers with embeddings, though labelled
    keeps_logits: ClassVar[bool] = True  # caches have logits also for methods that read none

    name: str
    """Name of the task; a name alone takes every default."""

    @property
    @abstractmethod
    def headline(self) -> str:
        """The metric that compares epochs and students: a key of `HEADINGS`."""

    @abstractmethod
    def reads(self) -> Signal:
        """Signals of student and teacher that `batch_sums` reads besides what the method needs."""

    @abstractmethod
    def label_loss(self, scores: Tensor, batch: Batch, smoothing: float) -> Tensor:
        """The loss, a scalar, of a method's scores [B, C] against the labels."""

    def learns_from(self) -> Signal:
        """Signals of the student that `student_loss` reads besides the logits."""
        return Signal(0)

    def adapted(self, network: Staged) -> Staged:
        """A network as the task needs it, changed in place; its weights are loaded afterwards."""
        return network

    def student_loss(
        self, student: Outputs, scores: Tensor, batch: Batch, smoothing: float
    ) -> Tensor:
        """The loss, a scalar, of a student's outputs and of the method's scores [B, C] of them."""
        return self.label_loss(scores, batch, smoothing)

    @abstractmethod
    def batch_sums(
        self,
        method: Method,
        student: Outputs,
        teacher: Outputs | None,
        batch: Batch,
        helpers: nn.ModuleDict,
    ) -> Tensor:
        """Sums over one test batch, float64 [n]; n is equal for all batches."""

    @abstractmethod
    def metrics(self, sums: Tensor, *, taught: bool) -> dict[str, float]:
        """Metrics from the sums over all test images; `taught`: a teacher answered, too."""

    def releases(self, method: Method, helpers: nn.ModuleDict) -> nn.ModuleDict:
        """Helpers of a method that are saved with the finished student."""
        return method.releases(helpers)

    def answer(self, embedding: Tensor, released: nn.ModuleDict) -> Tensor:
        """The answer of a student without a classifier, from its embedding [B, D].

        `released`: helpers that it was saved with, or all of its method's.
        """
        return embedding

    def over(self, images: int) -> "Task":
        """The task as a number of test images is evaluated."""
        return self

    def collects_from(self, student: Outputs, teacher: Outputs | None) -> bool:
        """True where `collected` is called, too, by the outputs for one batch."""
        return self.collects

    def of_teacher(self, test: Embedded) -> Any:
        """The part of `collected` that follows from the teacher's embeddings alone, on the CPU.

        It is computed at the first evaluation of a training, and kept. None: there is no such part.
        """

    def collected(self, test: Embedded, kept: Any = None) -> dict[str, float]:
        """Metrics from the embeddings of all test images; `kept` is what `of_teacher` says."""
        return {}

    def check_labels(self, train: Tensor, test: Tensor, *, of_probe: bool) -> None:
        """Raise `ValueError` where labels int64 [N], [M] of the run's images cannot judge.

        `of_probe`: they are those of the probe's images.
        """

    def student_embeds(self) -> tuple[Split, ...]:
        """The parts of the probe's images whose embeddings by the student `judged` reads."""
        return ("train", "test")

    def teacher_embeds(self) -> tuple[Split, ...]:
        """Those whose embeddings by the frozen teacher it reads, from caches of their own."""
        return ()

    def judged_teacher(self, train: Embedded, test: Embedded, names: Sequence[str]) -> Any:
        """The part of `judged` that follows from the teacher's embeddings alone, on the CPU.

        It is computed at the first probe of a training, and kept. None: there is no such part.
        """

    def judged(
        self, train: Embedded, test: Embedded, names: Sequence[str], kept: Any = None
    ) -> dict[str, float]:
        """Metrics from the embeddings of the probe's images, whose classes have these names.

        `kept` is what `judged_teacher` says. Raises `LookupError` for a task without a probe.
        """
        raise LookupError(f"task {self.name!r} has no probe")

    def score(self, metrics: Mapping[str, float]) -> float:
        """The headline of an epoch, on validation images where there are some.

        The higher the better; minus infinity where it was not measured.
        """
        value = metrics.get(f"validation_{self.headline}", metrics.get(self.headline))
        return -math.inf if value is None else value


class LabelFreeTask(Task):
    """Task whose students learn the teacher's embeddings without labels. Abstract."""

    labelled: ClassVar[bool] = False

    def reads(self) -> Signal:
        """The embeddings."""
        return Signal.EMBEDDING

    def label_loss(self, scores: Tensor, batch: Batch, smoothing: float) -> Tensor:
        """Raises `LookupError`: there is none."""
        raise LookupError(f"task {self.name!r} has no label loss")


def probe_of(task: Task) -> LabelledSet | None:
    """The labelled set by which a task judges embeddings; None without one."""
    probe = getattr(task, "probe", None)
    return probe if isinstance(probe, LabelledSet) else None


def loss_sums(
    method: Method,
    student: Outputs,
    teacher: Outputs | None,
    batch: Batch,
    helpers: nn.ModuleDict,
) -> list[Tensor]:
    """Images, those whose loss is known, and the sum of the losses: float64 scalars.

    The loss is the method's, where it reads embeddings alone and keeps no memory of samples: the
    teacher's cache of the test images has embeddings, and no memory knows their ids.
    """
    zero = student.any_tensor.new_zeros((), dtype=torch.float64)
    known, loss = zero, zero
    if teacher is not None and method.needs() == Signal.EMBEDDING and not method.has_memory():
        losses = method.losses(student, teacher, batch, helpers)
        size = len(student.any_tensor)
        known, loss = zero + size, torch.stack([*losses.values()]).sum().double() * size
    return [zero + len(student.any_tensor), known, loss]
