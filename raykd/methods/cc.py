"""Correlation congruence: how samples of a batch relate, in one of two published forms.

Shapes: B batch, D embedding width.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from raykd.core.record import Limits
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at

Form = Literal["product", "gaussian"]
WEIGHTS: Mapping[Form, float] = {"product": 0.02, "gaussian": 100.0}


def neighbour_product(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over neighbours in the batch of the product of |student - teacher|, summed over D.

    Depends on the order of the batch; 0 for one sample.
    """
    difference = (student - teacher).abs()
    if len(difference) < 2:
        return 0.0 * difference.sum()
    return (difference[:-1] * difference[1:]).sum(1).mean()


def gaussian_kernel(embedding: Tensor, gamma: float, order: int) -> Tensor:
    """exp(-gamma |x_i - x_j|**2) of unit embeddings, as a Taylor series up to `order`: [B, B]."""
    unit = F.normalize(embedding, dim=1)
    inner = unit @ unit.T
    powers = [(2 * gamma) ** p / math.factorial(p) * inner**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(powers).sum(0)


class CC(Method):
    """weight * the correlation loss.

    Peng et al. 2019, arXiv 1904.01802. `product` (the default) is what the authors gave to the CRD
    benchmark and what all its tables show: both embeddings go through a trained linear map of
    `width`, and the differences of neighbours in the batch are multiplied. `gaussian` is the
    paper's equation 6 as the Knowledge-Distillation-Zoo has it: the mean square of the
    difference of Gaussian kernels. The weights are those sources': 0.02 and 100.
    """

    title: ClassVar[str] = "Peng et al. 2019, arXiv 1904.01802"
    cost: ClassVar[str] = "B D width, or B^2 D"

    name: Literal["cc"] = "cc"
    form: Form = "product"
    width: int = Field(default=128, ge=1, le=Limits.WIDTH)  # `product`: outputs of the maps
    gamma: float = Field(default=0.4, gt=0, le=Limits.WEIGHT)  # `gaussian`: the kernel's
    order: int = Field(default=2, ge=1, le=100)  # last power of the kernel's Taylor series
    weight: Schedule | None = None  # None: the form's own

    def needs(self) -> Signal:
        """The embeddings."""
        return Signal.EMBEDDING

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """A linear map for each network, both trained; none for `gaussian`."""
        if self.form == "gaussian":
            return nn.ModuleDict()
        widths = {"student": student.embedding, "teacher": teacher.embedding}
        return nn.ModuleDict({who: nn.Linear(width, self.width) for who, width in widths.items()})

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The correlation loss, at the spot "embedding"."""
        with full_precision(student.embedding):
            mine, theirs = precise(student.embedding), precise(teacher.embedding)
            if self.form == "product":
                loss = neighbour_product(helpers["student"](mine), helpers["teacher"](theirs))
            else:
                kernel = gaussian_kernel(mine, self.gamma, self.order)
                loss = F.mse_loss(kernel, gaussian_kernel(theirs, self.gamma, self.order))
            weight = WEIGHTS[self.form] if self.weight is None else self.weight
            return {"embedding": value_at(weight, batch.epoch) * loss}
