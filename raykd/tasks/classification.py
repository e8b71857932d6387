"""Classification: cross entropy with the labels, and top-1 accuracy.

Shapes: B batch, C classes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs, Signal
from raykd.methods.base import Method, finite, precise
from raykd.tasks.base import Task

_SUMS = 6  # images, loss, top-1, top-5, agreement, divergence


class LabelledTask(Task):
    """Task whose students classify the training images. Abstract.

    `top1` and `top5` are percentages, `test_loss` is the cross entropy of the method's scores
    in nats. With a teacher, `agreement` is the percentage of images on which both answer the
    same, and `kl` the mean KL(teacher || student) at temperature 1, in nats.
    """

    def reads(self) -> Signal:
        """The logits, which are there without being asked for."""
        return Signal(0)

    def label_loss(self, scores: Tensor, batch: Batch, smoothing: float) -> Tensor:
        """Cross entropy, in nats."""
        return F.cross_entropy(precise(scores), batch.targets, label_smoothing=smoothing)

    def batch_sums(
        self,
        method: Method,
        student: Outputs,
        teacher: Outputs | None,
        batch: Batch,
        helpers: nn.ModuleDict,
    ) -> Tensor:
        """Sums of `_SUMS`, float64 [6]; the last two are 0 without a teacher."""
        scores, targets = precise(method.scores(student, teacher, helpers)), batch.targets
        best = scores.topk(min(5, scores.shape[1]), dim=1).indices
        hits = best == targets[:, None]
        sums = [
            scores.new_full((), len(scores)),
            F.cross_entropy(scores, targets, reduction="sum"),
            hits[:, 0].sum(),
            hits.sum(),
        ]
        if teacher is not None:
            log_teacher, log_student = finite(teacher.logits.log_softmax(1)), scores.log_softmax(1)
            sums.append((teacher.logits.argmax(1) == best[:, 0]).sum())
            sums.append(F.kl_div(log_student, log_teacher, reduction="sum", log_target=True))
        sums += [scores.new_zeros(())] * (_SUMS - len(sums))
        return torch.stack([value.double() for value in sums])

    def metrics(self, sums: Tensor, *, taught: bool) -> dict[str, float]:
        """`test_loss`, `top1`, `top5`, and with a teacher `agreement` and `kl`."""
        count, loss, top1, top5, agree, divergence = sums.tolist()
        metrics = {
            "test_loss": loss / count,
            "top1": 100 * top1 / count,
            "top5": 100 * top5 / count,
        }
        if taught:
            metrics |= {"agreement": 100 * agree / count, "kl": divergence / count}
        return metrics


class Classification(LabelledTask):
    """Classification of images with one label each."""

    name: Literal["classification"] = "classification"

    @property
    def headline(self) -> str:
        """Top-1 accuracy."""
        return "top1"


CLASSIFICATION = Classification()  # the default task
