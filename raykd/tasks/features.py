"""Features: a backbone whose embeddings are to be as useful as the teacher's; no labels.

Shapes: B batch, D student's embedding width, E teacher's.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs
from raykd.data.recipe import AnyData
from raykd.methods.base import Method, precise
from raykd.tasks import alignment
from raykd.tasks.base import Embedded, LabelFreeTask, LabelledSet, Task, loss_sums
from raykd.tasks.probes import NEIGHBOURS, TEMPERATURE, knn_accuracy, linear_accuracy

Kind = Literal["knn", "linear"]


class Probe(LabelledSet):
    """A labelled set by which embeddings are judged; nothing is trained on it but a linear probe.

    `knn` is the top-1 accuracy of a vote of the `k` nearest training images by cosine, with weights
    exp(cosine / `temperature`) (Wu et al. 2018, arXiv 1805.01978; k = 20 as in DINO, Caron et al.
    2021, arXiv 2104.14294). `linear` is that of a logistic regression on the frozen embeddings.
    """

    data: AnyData
    """Labelled images: the probe learns from the training rows and is tested on the others."""
    kind: tuple[Kind, ...] = Field(default=("knn", "linear"), min_length=1)
    """Probes to make; the first one compares students."""
    k: int = Field(default=NEIGHBOURS, ge=1, le=Limits.ROWS)
    """Neighbours that vote in the k-NN probe."""
    temperature: float = Field(default=TEMPERATURE, gt=0, le=Limits.TEMPERATURE)
    """Temperature that divides the cosines in a vote of the k-NN probe."""
    every: int | None = Field(default=None, ge=1, le=Limits.EPOCHS)
    """Epochs between two probes; null: after the last epoch alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({*self.kind}) < len(self.kind):
            raise ValueError(f"kind: expected each probe once, got {', '.join(self.kind)}")
        return self


class Features(LabelFreeTask):
    """Distillation of embeddings, without labels: the student is a backbone without a classifier.

    `test_loss` is the method's loss on the test images (of methods that read embeddings alone and
    keep no memory of samples), and `cka` the linear centred kernel alignment of the embeddings of
    student and teacher over them, in percent: 100 where one is a rotation and a scaling of the
    other (Kornblith et al. 2019, arXiv 1905.00414, equation 5).
    With a probe there are `knn_top1` and `linear_top1`, and what compares students is the first.
    """

    name: Literal["features"] = "features"
    probe: Probe | None = None
    """Labelled set by which embeddings are judged; null: no set."""

    @property
    def headline(self) -> str:
        """The accuracy of the first probe; without one the alignment with the teacher."""
        return "cka" if self.probe is None else f"{self.probe.kind[0]}_top1"

    def batch_sums(
        self,
        method: Method,
        student: Outputs,
        teacher: Outputs | None,
        batch: Batch,
        helpers: nn.ModuleDict,
    ) -> Tensor:
        """Images, D, E, losses, and sums and products of embeddings not collected: float64 [n]."""
        assert teacher is not None, "embeddings are compared with a teacher's"
        x, y = precise(student.embedding).double(), precise(teacher.embedding).double()
        count, known, loss = loss_sums(method, student, teacher, batch, helpers)
        widths = [count * x.shape[1], count * y.shape[1]]  # times the images, since sums are added
        first = torch.stack([count, *widths, known, loss])
        if self.collects_from(student, teacher):
            return first
        sums = (x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y)
        return torch.cat([first, *(value.flatten() for value in sums)])

    def metrics(self, sums: Tensor, *, taught: bool) -> dict[str, float]:
        """`cka`, and `test_loss` where the method reads embeddings alone."""
        count, *widths, known, loss = sums[:5].tolist()
        metrics = {"test_loss": loss / count} if known else {}
        if len(sums) == 5:
            return metrics
        width, other = (round(value / count) for value in widths)
        shapes = [(width,), (other,), (width, width), (other, other), (width, other)]
        parts = sums[5:].split([torch.Size(shape).numel() for shape in shapes])
        x, y, xx, yy, xy = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        xx, yy, xy = (
            product - torch.outer(a, b) / count
            for product, a, b in ((xx, x, x), (yy, y, y), (xy, x, y))
        )
        spread = float(xx.norm() * yy.norm())
        cka = float(xy.square().sum()) / spread if spread else 0.0
        return {"cka": 100 * min(1.0, max(0.0, cka))} | metrics

    def over(self, images: int) -> Task:
        """The task that takes wide embeddings of few images row by row."""
        return _OverImages(probe=self.probe, images=images)

    def judged(
        self, train: Embedded, test: Embedded, names: Sequence[str], kept: Any = None
    ) -> dict[str, float]:
        """Accuracies in percent, by kind of probe."""
        probe = self.probe
        assert probe is not None
        rows = (train.student, train.labels, test.student, test.labels, len(names))
        metrics: dict[str, float] = {}
        for kind in probe.kind:
            if kind == "knn":
                accuracy = knn_accuracy(*rows, k=probe.k, temperature=probe.temperature)
            else:
                accuracy = linear_accuracy(*rows)
            metrics |= {f"{kind}_top1": accuracy.top1, f"{kind}_top5": accuracy.top5}
        return metrics


class _OverImages(Features):
    """The task for a number of test images."""

    images: int = Field(ge=0, le=Limits.ROWS)
    """Number of test images."""

    def collects_from(self, student: Outputs, teacher: Outputs | None) -> bool:
        """True for embeddings that are wide for their number."""
        if teacher is None:
            return False
        widths = student.embedding.shape[1], teacher.embedding.shape[1]
        return alignment.by_rows(self.images, *widths)

    def collected(self, test: Embedded, kept: Any = None) -> dict[str, float]:
        """`cka`."""
        assert len(test.teacher), "embeddings are compared with a teacher's"
        return {"cka": 100 * alignment.cka(test.student, test.teacher)}
