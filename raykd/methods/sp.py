"""Similarity preserving: samples that the teacher finds alike, the student finds alike.

Shapes: B batch, D embedding width, K channels, H, W pixels.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods import feature_maps
from raykd.methods.base import Method, Schedule, full_precision, precise, value_at


def similarity(rows: Tensor) -> Tensor:
    """Inner products of all pairs of samples [B, B], each row of length 1; from [B, ...]."""
    flat = rows.flatten(1)
    return F.normalize(flat @ flat.T, dim=1, eps=1e-12)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two similarities, over B**2 pairs; 0 for one sample."""
    return (similarity(teacher) - similarity(student)).square().mean()


class SP(Method):
    """weight * ||G(teacher) - G(student)||**2 / B**2, G = F F^T with rows of length 1.

    F is the last stage's output as [B, K H W]; the two networks may differ in K, H and W. Tung
    and Mori 2019, arXiv 1907.09682. Weight 3000 is the CRD benchmark's. `on: embedding` is a
    decision of ours: the same loss on pooled features, which a cache can hold.
    """

    title: ClassVar[str] = "Tung and Mori 2019, arXiv 1907.09682"
    cost: ClassVar[str] = "B^2 K H W, or B^2 D on embeddings"

    name: Literal["sp"] = "sp"
    weight: Schedule = 3000.0
    on: Literal["features", "embedding"] = "features"  # the last stage's output, or pooled

    def needs(self) -> Signal:
        """Stage outputs, or embeddings."""
        return Signal.EMBEDDING if self.on == "embedding" else Signal.FEATURES

    def spots(
        self, student: Mapping[str, object], teacher: Mapping[str, object]
    ) -> Mapping[str, str]:
        """The last stage, or the embedding."""
        if self.on == "embedding":
            return {"embedding": "embedding"}
        return {feature_maps.last(student): feature_maps.last(teacher)}

    def helpers(
        self, student: Shapes, teacher: Shapes, targets: Tensor | None = None
    ) -> nn.ModuleDict:
        """No helpers; raises `ConfigError` for a network without stages where they are compared."""
        if self.on == "features":
            feature_maps.deepest(student, self.name)
            feature_maps.deepest(teacher, self.name)
        return nn.ModuleDict()

    def losses(
        self, student: Outputs, teacher: Outputs, batch: Batch, helpers: nn.ModuleDict
    ) -> Mapping[str, Tensor]:
        """The similarities' difference, at the student's last stage or at the embedding."""
        if self.on == "embedding":
            spot, mine, theirs = "embedding", student.embedding, teacher.embedding
        else:
            spot = feature_maps.last(student.features)
            mine, theirs = (
                student.features[spot],
                teacher.features[feature_maps.last(teacher.features)],
            )
        with full_precision(student.logits):
            loss = similarity_loss(precise(mine), precise(theirs))
            return {spot: value_at(self.weight, batch.epoch) * loss}
