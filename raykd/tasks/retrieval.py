"""Retrieval: embeddings by which images of the same class or object are found; no label loss.

Shapes: N test images, D student's embedding width, E teacher's.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs
from raykd.data.recipe import Split
from raykd.data.sources import RANKINGS
from raykd.methods.base import Method
from raykd.methods.embedding_map import PROJECTION, mapped
from raykd.tasks import rankings
from raykd.tasks.base import Embedded, LabelFreeTask, LabelledSet, loss_sums

_Rank = Annotated[int, Field(ge=1, le=Limits.ROWS)]
AGREED = 10  # nearest images that agreement with the teacher counts


class RetrievalSet(LabelledSet):
    """A labelled set by which retrieval is judged.

    With `data: {name: rankings}` a list says what each query is to find, and what is ignored.
    """

    gallery: Literal["test", "train"] = "test"
    """Images that each test image is to find its class among: all others, or the training rows,
    which are those of a folder `gallery`, or of a list. Left out, a gallery apart is taken where
    there is one.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.is_listed and "gallery" not in self.model_fields_set:
            object.__setattr__(self, "gallery", "train")
        if self.is_listed and self.gallery == "test":
            raise ValueError(
                f"data.name: {RANKINGS!r} is a list of queries with a gallery apart; set gallery: "
                "train, or leave it out"
            )
        return self

    @property
    def is_listed(self) -> bool:
        """True where a list says what is relevant."""
        return self.data.name == RANKINGS


class TeacherRankings(NamedTuple):
    """The rankings of a frozen teacher's embeddings by themselves."""

    nearest: Tensor | None  # int32 [M, k]: rows of the nearest images; None of one image
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

    With a `probe`, its images are ranked instead, an asymmetric student's among those that the
    teacher embedded, and `probe_agreement_at_10` is that of its queries. `queries_left_out` counts
    those that have nothing to find, where there are some.
    """

    collects: ClassVar[bool] = True

    name: Literal["retrieval"] = "retrieval"
    gallery: Literal["teacher", "student"] = "teacher"
    """Network whose embeddings the gallery has: asymmetric (teacher), or symmetric (student)."""
    ranks: tuple[_Rank, ...] = rankings.RANKS
    """Values of k in recall@k; 1 is among them. The default is ours: benchmarks have their own."""
    average: Literal["plain", "trapezoid"] = "plain"
    """Average precision: at each hit, or the mean of the precision before and after it."""
    probe: RetrievalSet | None = None
    """Labelled set whose images are ranked; null: the run's own test images."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if 1 not in self.ranks or len({*self.ranks}) < len(self.ranks):
            raise ValueError(f"ranks: expected different ones, 1 among them, got {self.ranks}")
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

    def of_teacher(self, test: Embedded) -> TeacherRankings:
        """The rankings of the teacher's embeddings by themselves."""
        teacher, several = test.teacher, len(test.teacher) > 1
        nearest = rankings.nearest(teacher, teacher, AGREED) if several else None
        if not len(test.labels) or self.probe is not None:
            return TeacherRankings(nearest, {})
        return TeacherRankings(nearest, self.worth(teacher, teacher, test.labels))

    def collected(self, test: Embedded, kept: Any = None) -> dict[str, float]:
        """Metrics of the rankings, in percent."""
        assert len(test.teacher), "a student of this task has a teacher"
        theirs = self.of_teacher(test) if kept is None else kept
        gallery = test.teacher if self.gallery == "teacher" else test.answer
        metrics: dict[str, float] = {}
        if theirs.nearest is not None:
            mine = rankings.nearest(test.answer, gallery, AGREED)
            metrics[f"agreement_at_{AGREED}"] = 100 * rankings.agreement(mine, theirs.nearest)
        if not len(test.labels) or self.probe is not None:
            return metrics
        metrics |= self.worth(test.answer, gallery, test.labels)
        metrics |= _named("teacher", theirs.worth)
        if self.gallery == "teacher":
            metrics |= _named("symmetric", self.worth(test.student, test.student, test.labels))
        return metrics

    def check_labels(self, train: Tensor, test: Tensor, *, of_probe: bool) -> None:
        """Raise `ValueError` where no image that is ranked has another of its class."""
        if of_probe != (self.probe is not None) or (self.probe and self.probe.is_listed):
            return  # a list has something to find
        if self.probe is not None and self.probe.gallery == "train":
            paired = bool(torch.isin(test, train).any())
        else:
            paired = len(test.unique()) < len(test)
        if not paired:
            apart = self.probe is not None and self.probe.gallery == "test"
            other = ", or set gallery: train, if the training rows are the gallery" if apart else ""
            raise ValueError(
                "no test image has another of its class in its gallery, so there is nothing to "
                f"retrieve; give two or more test images of a class{other}"
            )

    def student_embeds(self) -> tuple[Split, ...]:
        """The queries, and a gallery apart unless the teacher embeds it."""
        return ("test",) if self.teacher_embeds() else self._ranked_parts()

    def teacher_embeds(self) -> tuple[Split, ...]:
        """Queries and gallery of an asymmetric student's probe."""
        asymmetric = self.gallery == "teacher" and self.probe is not None
        return self._ranked_parts() if asymmetric else ()

    def _ranked_parts(self) -> tuple[Split, ...]:
        assert self.probe is not None
        return ("test",) if self.probe.gallery == "test" else ("train", "test")

    def judged_teacher(
        self, train: Embedded, test: Embedded, names: Sequence[str]
    ) -> TeacherRankings:
        """The rankings of the probe's images by the teacher alone."""
        found = self._found(test.teacher, self._gallery(train, test).teacher, train, test, names)
        return TeacherRankings(self._nearest(test.teacher, train, test), self._percent(found))

    def judged(
        self, train: Embedded, test: Embedded, names: Sequence[str], kept: Any = None
    ) -> dict[str, float]:
        """Metrics of the rankings of the probe's images, in percent, and queries left out."""
        gallery = self._gallery(train, test)
        if self.gallery == "student":
            result = self._found(test.answer, gallery.answer, train, test, names)
            return self._percent(result) | _left_out(result)
        theirs = self.judged_teacher(train, test, names) if kept is None else kept
        assert theirs.nearest is not None, "a gallery has images"
        result = self._found(test.answer, gallery.teacher, train, test, names)
        metrics = self._percent(result) | _left_out(result) | _named("teacher", theirs.worth)
        if gallery is test:  # which the student embeds, too
            alone = self._found(test.student, test.student, train, test, names)
            metrics |= _named("symmetric", self._percent(alone))
        mine = self._nearest(test.answer, train, test)
        agreement = rankings.agreement(mine, theirs.nearest)
        metrics[f"probe_agreement_at_{AGREED}"] = 100 * agreement
        return metrics

    def _gallery(self, train: Embedded, test: Embedded) -> Embedded:
        """The part of the probe's images that the queries, its test images, are to find."""
        assert self.probe is not None
        return test if self.probe.gallery == "test" else train

    def _nearest(self, queries: Tensor, train: Embedded, test: Embedded) -> Tensor:
        """The nearest of the images that the teacher embedded to the probe's queries [M, E]."""
        gallery = self._gallery(train, test)
        return rankings.nearest(queries, gallery.teacher, AGREED, alike=gallery is test)

    def _found(
        self, queries: Tensor, found: Tensor, train: Embedded, test: Embedded, names: Sequence[str]
    ) -> rankings.Retrieval:
        """The worth of rankings of the probe's gallery `found` [N, E] by its queries [M, E]."""
        assert self.probe is not None
        gallery, trapezoid = self._gallery(train, test), self.average == "trapezoid"
        if self.probe.is_listed:
            from raykd.data.sources.relevance import pairs_of  # few recipes have a list

            lists = rankings.Lists(*pairs_of(names, gallery.labels))
            return rankings.listed_retrieval(
                queries, found, lists, ranks=self.ranks, trapezoid=trapezoid
            )
        return rankings.retrieval(queries, found, test.labels, gallery.labels,
            alike=gallery is test, ranks=self.ranks, trapezoid=trapezoid)  # fmt: skip

    def worth(self, queries: Tensor, gallery: Tensor, labels: Tensor) -> dict[str, float]:
        """Metrics of images that rank each other, in percent."""
        return self._percent(rankings.retrieval(queries, gallery, labels, labels, alike=True,
            ranks=self.ranks, trapezoid=self.average == "trapezoid"))  # fmt: skip

    def _percent(self, result: rankings.Retrieval) -> dict[str, float]:
        metrics = {f"recall_at_{k}": 100 * value for k, value in result.recall.items()}
        metrics["map"] = 100 * result.mean_average_precision
        metrics["map_at_r"] = 100 * result.map_at_r
        return metrics


def _named(ranked: str, worth: Mapping[str, float]) -> dict[str, float]:
    """Metrics with the name of the embeddings that rank before theirs."""
    return {f"{ranked}_{name}": value for name, value in worth.items()}


def _left_out(result: rankings.Retrieval) -> dict[str, float]:
    """The number of queries that have nothing to find, if there are any."""
    return {"queries_left_out": result.left_out} if result.left_out else {}
