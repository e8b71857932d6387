"""Probabilistic knowledge transfer: similarity distributions among the samples of a batch.

Shapes: B batch, D embedding width.
"""

from typing import ClassVar, Literal

from torch import Tensor, nn

from raykd.methods.base import Schedule, SpotMethod

EPSILON = 1e-7  # from the official code; added to norms and to probabilities


def neighbours(embedding: Tensor) -> Tensor:
    """Rows of probabilities [B, B]: cosines of embeddings [B, D], mapped to 0..1, normalised."""
    unit = embedding / (embedding.norm(dim=1, keepdim=True) + EPSILON)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all B**2 pairs of p_t log(p_t / p_s), from embeddings [B, D]; 0 for one sample."""
    p_s, p_t = neighbours(student), neighbours(teacher)
    return (p_t * ((p_t + EPSILON) / (p_s + EPSILON)).log()).mean()


class PKT(SpotMethod):
    """weight * mean over pairs of p_t log(p_t / p_s), with cosine similarities of embeddings.

    Passalis and Tefas 2018, arXiv 1803.10837, equations 3 to 6 with the cosine kernel. The CRD
    benchmark's weight is large because the loss is a mean over B**2 pairs.
    """

    title: ClassVar[str] = "Passalis and Tefas 2018, arXiv 1803.10837"
    cost: ClassVar[str] = "B^2 D"

    name: Literal["pkt"] = "pkt"
    weight: Schedule = 30_000.0

    def spot_loss(self, student: Tensor, teacher: Tensor, helpers: nn.ModuleDict) -> Tensor:
        """Divergence of the similarity distributions."""
        return transfer(student, teacher)
