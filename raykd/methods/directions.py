"""Distances of directions of embeddings, on the scale of how far a teacher's own are apart.

Two of the summary losses of RADIO's trainer (NVIDIA-TAO/tao-pytorch). Their statistics are of the
teacher's outputs for some training images, in two passes: ours, where that code has running ones.

Shapes: B batch, D teacher's width, n rows.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from raykd.methods.helper_kinds import Fitted
from raykd.methods.standardiser import Standardiser

_NEAR = 1 - math.cos(1e-3)  # 1 - cosine below which the angle's square is taken as 2 (1 - cosine)
_APART = -1 + 1e-6  # the least cosine: at -1 the slope of the angle is infinite
_SMALLEST = 1e-8  # mean squared angle, and length of a tangent


class _OfEmbeddings(Fitted):
    """Helper that is fitted to embeddings, all of which it reads at once. Abstract."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks: list[Tensor] = []
        self.register_buffer("known", torch.tensor(False))

    def observe(self, vectors: Tensor) -> None:
        """Keep embeddings [n, D]."""
        self._blocks.append(vectors.detach().cpu())

    def observed(self) -> Tensor:
        """All embeddings [n, D] in float64; they are forgotten."""
        rows = torch.cat(self._blocks).double()
        self._blocks.clear()
        return rows


class Dispersion(_OfEmbeddings):
    """angle(student, teacher)**2 over the mean squared angle of the teacher's with their mean.

    C-RADIOv4, arXiv 2601.17237, equation 7. The mean's direction is that of embeddings as they are.
    """

    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spread", torch.ones(()))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The distance [B] of embeddings [B, D]."""
        return squared_angle(student, teacher) / self.spread.to(student)

    def settle(self) -> None:
        """Set the spread, computed in float64."""
        rows = self.observed()
        spread = squared_angle(rows, rows.mean(0, keepdim=True)).mean()
        self.spread.copy_(spread.clamp_min(_SMALLEST))
        self.known.fill_(True)


class TangentSphere(_OfEmbeddings):
    """Mean squared difference of tangents at the mean direction, after PHI-S.

    The tangent of an embedding's direction x at the pole p is angle / sin(angle) * (x - p cos), the
    pole the direction of the teacher's mean direction. PHI-S is fitted to the teacher's tangents.
    """

    pole: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("pole", torch.zeros(width))
        self.standardiser = Standardiser(width, "phi_s")

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The distance [B] of embeddings [B, D]."""
        mine, theirs = (self.standardiser(self._tangents(x)[..., None]) for x in (student, teacher))
        return (mine - theirs).square().mean((1, 2))

    def settle(self) -> None:
        """Set the pole and the standardisation, computed in float64."""
        rows = self.observed()
        self.pole.copy_(F.normalize(F.normalize(rows, dim=1).mean(0), dim=0))
        self.standardiser.calibrate([self._tangents(rows.to(self.pole.device))[..., None]])
        self.known.fill_(True)

    def _tangents(self, embedding: Tensor) -> Tensor:
        """Tangents [B, D] of embeddings [B, D]."""
        pole = self.pole.to(embedding)
        direction = F.normalize(embedding, dim=1)
        cosine = direction @ pole
        aside = direction - cosine[:, None] * pole  # of length sin(angle)
        length = aside.norm(dim=1).clamp_min(_SMALLEST)
        return (torch.atan2(length, cosine) / length)[:, None] * aside


def squared_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Squares [B] of the angles in radians between vectors [B, D]; slopes are finite."""
    cosine = F.cosine_similarity(student, teacher, dim=1)
    near = 1 - cosine < _NEAR
    angle = cosine.clamp_min(_APART).masked_fill(near, 0.0).acos()
    return torch.where(near, 2 * (1 - cosine), angle.square())
