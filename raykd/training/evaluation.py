"""Evaluation of a network on test images, and its agreement with its teacher.

Shapes: B batch, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd.data.loading.loader import Views
from raykd.data.loading.sampler import share
from raykd.methods.base import Method, finite, precise
from raykd.models.staged import Staged
from raykd.teachers.source import Source
from raykd.training.hosts.base import Host

BATCH = 512
_SUMS = 6  # images, loss, top-1, top-5, agreement, divergence


def evaluate(
    network: Staged,
    method: Method,
    helpers: nn.ModuleDict,
    test: Views,
    teacher: Source | None,
    host: Host,
    *,
    autocast: bool = False,
) -> dict[str, float]:
    """Metrics over the test images, each counted once however many workers share them.

    `top1` and `top5` are percentages, `test_loss` is the cross entropy of the method's scores
    in nats. With a teacher, `agreement` is the percentage of images on which both answer the
    same, and `kl` the mean KL(teacher || student) at temperature 1, in nats.
    """
    network.eval()
    helpers.eval()  # some have a part in the scores
    sums = torch.zeros(_SUMS, dtype=torch.float64, device=host.device)
    rows = share(len(test.images), host.rank, host.world)
    with torch.no_grad():
        for batch in test.runs(rows, BATCH):
            with torch.autocast(batch.pixels.device.type, torch.bfloat16, autocast):
                student = network.outputs(batch.pixels, method.student_needs())
            answer = teacher(batch) if teacher is not None else None
            scores = precise(method.scores(student, answer, helpers))
            reference = answer.logits if answer is not None else None
            sums += _batch_sums(scores, batch.targets, reference)
    count, loss, top1, top5, agree, divergence = host.total(sums).tolist()
    metrics = {"test_loss": loss / count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}
    if teacher is not None:
        metrics |= {"agreement": 100 * agree / count, "kl": divergence / count}
    return metrics


def _batch_sums(scores: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:
    """Sums over one batch, float64 [6]; the last two are 0 without a teacher."""
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices
    hits = best == targets[:, None]
    sums = [
        scores.new_tensor(len(scores)),
        F.cross_entropy(scores, targets, reduction="sum"),
        hits[:, 0].sum(),
        hits.sum(),
    ]
    if teacher is not None:
        log_teacher, log_student = finite(teacher.log_softmax(1)), scores.log_softmax(1)
        sums.append((teacher.argmax(1) == best[:, 0]).sum())
        sums.append(F.kl_div(log_student, log_teacher, reduction="sum", log_target=True))
    sums += [scores.new_zeros(())] * (_SUMS - len(sums))
    return torch.stack([value.double() for value in sums])
