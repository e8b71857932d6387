"""Adaptive ensemble distillation: the weights of teachers by which their gradients agree best.

Shapes: B batch, C classes, M teachers.
"""

from itertools import combinations
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raykd.core.types import Batch, Shapes
from raykd.methods.helper_kinds import Shared
from raykd.methods.panel_kd import PanelKD

_ROUNDS = 30  # over all pairs of teachers; of two, one round is exact


class AEKD(PanelKD):
    """weight * sum over teachers of a_m * mean over samples of T**2 KL(t_m || s).

    The a_m are those of the batch: of all that sum to 1 and lie between 0 and `cap` the ones that
    make the sum of a_m g_m shortest, where g_m is the gradient of teacher m's divergence by the
    student's logits, averaged over the batch (over all workers: ours). Du et al. 2020 (NeurIPS),
    equation 8, in the form of Rorozhl/CA-MKD, whose bound is 0.6; the solution in closed form of
    pairs is ours.
    """

    title: ClassVar[str] = "Du et al. 2020, NeurIPS; code of CA-MKD"
    cost: ClassVar[str] = "M B C + M^2 C"

    name: Literal["aekd"] = "aekd"
    cap: float = Field(default=0.6, gt=0, le=1)
    """Largest weight of a teacher; 1 / M where that is larger."""

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """The helper that gathers the gradients of all workers."""
        return nn.ModuleDict({"gradients": Shared()})

    def teacher_weights(
        self, student: Tensor, teachers: Tensor, batch: Batch, helpers: nn.ModuleDict
    ) -> Tensor:
        """Weights [M, 1]."""
        gradients, count = helpers["gradients"], len(teachers)
        assert isinstance(gradients, Shared)
        mine = (student / self.temperature).softmax(-1)
        sums = (mine - (teachers / self.temperature).softmax(-1)).sum(1)
        whole = gradients.gather(sums).unflatten(0, (-1, count)).sum(0).double()
        cap = max(self.cap, 1 / count)
        return shortest(whole @ whole.T, cap).to(teachers.dtype)[:, None]


def shortest(products: Tensor, cap: float) -> Tensor:
    """The a [M], summing to 1 and within 0 and `cap`, with the least a' G a; G is [M, M].

    G are inner products, in float64. It begins with equal weights, and moves weight between two
    teachers at a time as far as that helps.
    """
    count = len(products)
    weights = products.new_full((count,), 1 / count)
    for _ in range(_ROUNDS if count > 2 else 1):
        for i, j in combinations(range(count), 2):
            slope = products[i] @ weights - products[j] @ weights
            curvature = products[i, i] + products[j, j] - 2 * products[i, j]
            step = -slope / curvature.clamp_min(torch.finfo(products.dtype).tiny)
            low = torch.maximum(-weights[i], weights[j] - cap)
            high = torch.minimum(cap - weights[i], weights[j])
            step = torch.minimum(torch.maximum(step, low), high)
            move = torch.zeros_like(weights)
            move[i], move[j] = step, -step
            weights = weights + move
    return weights
