"""Retrieval: embeddings by which images of the same class or object are found; no label loss.

Shapes: N test images, D student's embedding width, E teacher's.
"""

from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs
from raykd.methods.base import Method
from raykd.methods.embedding_map import PROJECTION, mapped
from raykd.tasks import rankings
from raykd.tasks.base import LabelFreeTask, LabelledSet, loss_sums

_Rank = Annotated[int, Field(ge=1, le=Limits.ROWS)]
AGREED = 10  # nearest images that agreement with the teacher counts


class RetrievalSet(LabelledSet):
    """A labelled set by which retrieval is judged."""

    gallery: Literal["test", "train"] = "test"
    """Images that each test image is to find its class among: all others, or the training rows."""


class TeacherRankings(NamedTuple):
    """The rankings of a frozen teacher's embeddings by themselves."""

    nearest: Tensor | None  # int32 [N, k]: rows of the nearest images; None of one image
    worth: dict[str, float]  # metrics in percent; none where no label judges them


class Retrieval(LabelFreeTask):
    """Distillation of embeddings for retrieval, without labels: the student has no classifier.

    `gallery: teacher` is asymmetric: students embed queries, and the gallery stays as the teacher
    has embedded it (EmbedDistill, Kim et al. 2023, arXiv 2301.12005). What is released then ends in
    the method's linear map to the teacher's space. `gallery: student` is symmetric, and the map is
    dropped.

    Labels judge alone. Each test image is a query, and the others are its gallery: `recall_at_k` is
    the percentage of queries with an image of their class among the first k by cosine, `map` the
    mean average precision, and `map_at_r` MAP@R (Musgrave et al. 2020, arXiv 2003.08505). The same
    of the teacher alone begin with `teacher_`, and of an asymmetric student that finds among its
    own embeddings with `symmetric_`. `agreement_at_10` is the share of the 10 nearest images that
    are the teacher's nearest, too, and `test_loss` the method's loss, as in `features`.
    """

    collects: ClassVar[bool] = True

    name: Literal["retrieval"] = "retrieval"
    gallery: Literal["teacher", "student"] = "teacher"
    """Network whose embeddings the gallery has: asymmetric (teacher), or symmetric (student)."""
    ranks: tuple[_Rank, ...] = rankings.RANKS
    """Values of k in recall@k; 1 is among them."""
    average: Literal["plain", "trapezoid"] = "plain"
    """Average precision: at each hit, or the mean of the precision before and after it."""
    probe: RetrievalSet | None = None
    """Labelled set that judges a symmetric student; null: the run's own test images."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if 1 not in self.ranks or len({*self.ranks}) < len(self.ranks):
            raise ValueError(f"ranks: expected different ones, 1 among them, got {self.ranks}")
        if self.probe is not None and self.gallery == "teacher":
            raise ValueError(
                "a probe has no embeddings of the teacher's; choose gallery: student, or leave the "
                "probe out, and the run's own test images are ranked"
            )
        return self

    @property
    def headline(self) -> str:
        """Recall at 1."""
        return "recall_at_1"

    def batch_sums(
        self,
        method: Method,
        student: Outputs,
        teacher: Outputs | None,
        batch: Batch,
        helpers: nn.ModuleDict,
    ) -> Tensor:
        """Images, those with a loss, and losses: float64 [3]."""
        return torch.stack(loss_sums(method, student, teacher, batch, helpers))

    def metrics(self, sums: Tensor, *, taught: bool) -> dict[str, float]:
        """`test_loss` where the method reads embeddings alone."""
        count, known, loss = sums.tolist()
        return {"test_loss": loss / count} if known else {}

    def releases(self, method: Method, helpers: nn.ModuleDict) -> nn.ModuleDict:
        """The method's own, and the map to the teacher's space where the gallery is there."""
        released = method.releases(helpers)
        if self.gallery == "teacher" and PROJECTION in helpers:
            released[PROJECTION] = helpers[PROJECTION]
        return released

    def answer(self, embedding: Tensor, released: nn.ModuleDict) -> Tensor:
        """The embedding [B, D], or its place in the teacher's space [B, E]."""
        return mapped(embedding, released) if self.gallery == "teacher" else embedding

    def of_teacher(self, teacher: Tensor, labels: Tensor | None) -> TeacherRankings:
        """The rankings of the teacher's embeddings [N, E] by themselves."""
        nearest = rankings.nearest(teacher, teacher, AGREED) if len(teacher) > 1 else None
        if labels is None or self.probe is not None:
            return TeacherRankings(nearest, {})
        return TeacherRankings(nearest, self.worth(teacher, teacher, labels))

    def collected(
        self,
        embedding: Tensor,
        answer: Tensor,
        teacher: Tensor | None,
        labels: Tensor | None,
        kept: Any = None,
    ) -> dict[str, float]:
        """Metrics of the rankings, in percent."""
        assert teacher is not None, "a student of this task has a teacher"
        theirs = self.of_teacher(teacher, labels) if kept is None else kept
        gallery = teacher if self.gallery == "teacher" else answer
        metrics: dict[str, float] = {}
        if theirs.nearest is not None:
            mine = rankings.nearest(answer, gallery, AGREED)
            metrics[f"agreement_at_{AGREED}"] = 100 * rankings.agreement(mine, theirs.nearest)
        if labels is None or self.probe is not None:
            return metrics
        metrics |= self.worth(answer, gallery, labels)
        more = {"teacher": theirs.worth}
        if self.gallery == "teacher":
            more["symmetric"] = self.worth(embedding, embedding, labels)
        for who, worth in more.items():
            metrics |= {f"{who}_{name}": value for name, value in worth.items()}
        return metrics

    def check_labels(self, train: Tensor, test: Tensor, *, of_probe: bool) -> None:
        """Raise `ValueError` where no image that is ranked has another of its class."""
        if of_probe != (self.probe is not None):
            return
        if self.probe is not None and self.probe.gallery == "train":
            paired = bool(torch.isin(test, train).any())
        else:
            paired = len(test.unique()) < len(test)
        if not paired:
            raise ValueError(
                "no test image has another of its class in its gallery, so there is nothing to "
                "retrieve; give two or more test images of a class"
            )

    def judged(
        self, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, classes: int
    ) -> dict[str, float]:
        """Metrics of the rankings of the probe's images, in percent."""
        assert self.probe is not None
        if self.probe.gallery == "test":
            return self.worth(test, test, test_labels)
        return self._percent(rankings.retrieval(test, train, test_labels, train_labels,
            ranks=self.ranks, trapezoid=self.average == "trapezoid"))  # fmt: skip

    def worth(self, queries: Tensor, gallery: Tensor, labels: Tensor) -> dict[str, float]:
        """Metrics of images that rank each other, in percent."""
        return self._percent(rankings.retrieval(queries, gallery, labels, labels, alike=True,
            ranks=self.ranks, trapezoid=self.average == "trapezoid"))  # fmt: skip

    def _percent(self, result: rankings.Retrieval) -> dict[str, float]:
        metrics = {f"recall_at_{k}": 100 * value for k, value in result.recall.items()}
        metrics["map"] = 100 * result.mean_average_precision
        metrics["map_at_r"] = 100 * result.map_at_r
        return metrics
