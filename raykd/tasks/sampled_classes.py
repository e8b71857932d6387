"""Classes that a step's label loss counts, where it counts a share of all of them.

Shapes: B batch, C classes, K sampled classes.
"""

import torch
from torch import Tensor

from raykd.core import keyed_random

_LAST = torch.iinfo(torch.int64).max


def sampled_classes(
    labels: Tensor, ids: Tensor, epoch: int, classes: int, count: int
) -> tuple[Tensor, Tensor]:
    """The classes int64 [K] of a step, in rising order, and the places of its labels among them.

    Those of `labels` (int64 [B]) are among them, and others up to a `count` of K, which is B or
    more: Partial FC (An et al. 2022, arXiv 2203.15565). The samples' ids (int64 [B]) and the epoch
    draw the others, so a step has the same ones when it is done again, and nothing waits for the
    device.
    """
    key = keyed_random.draw(0, ids, epoch, keyed_random.CLASSES).sum()
    places = torch.arange(classes, device=labels.device) + key
    bits = keyed_random.draw(0, places, epoch, keyed_random.CLASSES)
    chosen = bits.index_fill(0, labels, _LAST).topk(count).indices.sort().values
    return chosen, torch.searchsorted(chosen, labels)
