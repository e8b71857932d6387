"""Correlation congruence: relations between the samples of a batch, in two published forms.

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
    """exp(-gamma |x_i - x_j|**2) [B, B] of unit embeddings, as a Taylor series up to `order`."""
    unit = F.normalize(embedding, dim=1)
    inner = unit @ unit.T
    powers = [(2 * gamma) ** p / math.factorial(p) * inner**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(powers).sum(0)


class CC(Method):
    """weight * the correlation loss.

    Peng et al. 2019, arXiv 1904.01802. `product` (the default) is the authors' contribution to the
    CRD benchmark, used in all its tables: both embeddings pass a trained linear map to `width`, and
    the differences of neighbours in the batch are multiplied. `gaussian` is equation 6 of the paper
    as in the Knowledge-Distillation-Zoo: the mean squared difference of Gaussian kernels. The
    default weights 0.02 and 100 are from these sources.
    """

    title: ClassVar[str] = "Peng et al. 2019, arXiv 1904.01802"
    cost: ClassVar[str] = "B D width, or B^2 D"

    name: Literal["cc"] = "cc"
    form: Form = "product"
    """Correlation of neighbours by trained linear maps, or by Gaussian kernels (equation 6)."""
    width: int = Field(default=128, ge=1, le=Limits.WIDTH)
    """Outputs of the trained linear maps, with form `product`."""
    gamma: float = Field(default=0.4, gt=0, le=Limits.WEIGHT)
    """Factor gamma in the Gaussian kernel's exponent, with form `gaussian`."""
    order: int = Field(default=2, ge=1, le=100)
    """Highest power P of the kernel's Taylor series, with form `gaussian`."""
    weight: Schedule | None = None
    """Factor of the correlation loss; null: 0.02 for `product`, 100 for `gaussian`."""

    def needs(self) -> Signal:
        """The embeddings."""
        return Signal.EMBEDDING

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """A trained linear map for each network; none for `gaussian`."""
        if self.form == "gaussian":
            return nn.ModuleDict()
        widths = {"student": student.embedding, "teacher": teacher.embedding}
        return nn.ModuleDict({who: nn.Linear(width, self.width) for who, width in widths.items()})

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The correlation loss, at the spot "embedding"."""
        with full_precision(student.embedding):
            h_s, h_t = precise(student.embedding), precise(teacher.embedding)
            if self.form == "product":
                loss = neighbour_product(helpers["student"](h_s), helpers["teacher"](h_t))
            else:
                kernel_s = gaussian_kernel(h_s, self.gamma, self.order)
                loss = F.mse_loss(kernel_s, gaussian_kernel(h_t, self.gamma, self.order))
            weight = WEIGHTS[self.form] if self.weight is None else self.weight
            return {"embedding": value_at(weight, batch.epoch) * loss}
