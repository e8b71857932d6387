"""Base class of tasks.

Shapes: B batch, C classes, D embedding width.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from raykd.core.record import Record
from raykd.core.types import Batch, Outputs, Signal
from raykd.methods.base import Method

# Metrics by which students are compared, all of which are better the higher, and their headings.
HEADINGS: Mapping[str, str] = {
    "top1": "top-1 %",
    "knn_top1": "k-NN %",
    "linear_top1": "linear %",
    "cka": "CKA %",
}


def headline_of(metrics: Mapping[str, Any]) -> str:
    """The headline among an epoch's metrics as text, as "top-1 41.70 %"; "" where there is none."""
    for name, heading in HEADINGS.items():
        if name in metrics:
            return f"{heading.removesuffix(' %')} {metrics[name]:.2f} %"
    return ""


class Task(Record):
    """The purpose of a student. A subclass is final.

    A test batch gives sums, which are added over batches and workers before they become metrics.
    """

    labelled: ClassVar[bool] = True  # the student learns from labels, and has a classifier

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

    def score(self, metrics: Mapping[str, float]) -> float:
        """The headline of an epoch, on validation images where there are some.

        The higher the better; minus infinity where it was not measured.
        """
        value = metrics.get(f"validation_{self.headline}", metrics.get(self.headline))
        return -math.inf if value is None else value
