"""Probabilistic knowledge transfer: how likely samples are to be each other's neighbours.

Shapes: B batch, D embedding width.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from raykd.core.types import Batch, Outputs, Signal
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at

EPSILON = 1e-7  # from the official code; added to norms and to probabilities


def neighbours(embedding: Tensor) -> Tensor:
    """Probabilities [B, B] from cosines of embeddings [B, D], moved to 0 to 1; rows sum to 1."""
    unit = embedding / (embedding.norm(dim=1, keepdim=True) + EPSILON)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over all pairs of p_t log(p_t / p_s), which is 1 / B of a mean divergence."""
    mine, theirs = neighbours(student), neighbours(teacher)
    return (theirs * ((theirs + EPSILON) / (mine + EPSILON)).log()).mean()


class PKT(Method):
    """weight * mean over pairs of p_t log(p_t / p_s), with cosine similarities of embeddings.

    Passalis and Tefas 2018, arXiv 1803.10837, equations 3 to 6 with the cosine kernel. The CRD
    benchmark's weight is as large as it is because the loss is a mean over B**2 pairs.
    """

    title: ClassVar[str] = "Passalis and Tefas 2018, arXiv 1803.10837"
    cost: ClassVar[str] = "B^2 D"

    name: Literal["pkt"] = "pkt"
    weight: Schedule = 30_000.0

    def needs(self) -> Signal:
        """The embeddings."""
        return Signal.EMBEDDING

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The divergence of the neighbourhoods, at the spot "embedding"; 0 for one sample."""
        with full_precision(student.embedding):
            loss = transfer(precise(student.embedding), precise(teacher.embedding))
            return {"embedding": value_at(self.weight, batch.epoch) * loss}
