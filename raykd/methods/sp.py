"""Similarity preserving: matching similarity matrices over the samples of a batch.

Shapes: B batch, D embedding width, K channels, H, W pixels.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from raykd.core.types import Shapes, Signal
from raykd.methods import feature_maps
from raykd.methods.base import Schedule, SpotMethod, Stages
from raykd.methods.columns import FromColumns, StageMaps
from raykd.methods.derived import Derived


def similarity(rows: Tensor) -> Tensor:
    """Inner products [B, B] of all pairs of samples [B, ...], each row with L2 norm 1."""
    flat = rows.flatten(1)
    return F.normalize(flat @ flat.T, dim=1, eps=1e-12)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two similarity matrices, over B**2 pairs; 0 for one sample."""
    return (similarity(teacher) - similarity(student)).square().mean()


class SP(FromColumns, SpotMethod):
    """weight * ||G(teacher) - G(student)||**2 / B**2, G = F F^T with rows of length 1.

    F is the last stage's output as [B, K H W]; the two networks may differ in K, H and W. Tung
    and Mori 2019, arXiv 1907.09682. Weight 3000 is the CRD benchmark's. `on: embedding` is
    our addition: the same loss on pooled features, which a cache can hold. The matrix depends on
    the batch, so that `source: cache` stores F itself, the map.
    """

    title: ClassVar[str] = "Tung and Mori 2019, arXiv 1907.09682"
    cost: ClassVar[str] = "B^2 K H W, or B^2 D on embeddings"

    name: Literal["sp"] = "sp"
    weight: Schedule = 3000.0
    on: Literal["features", "embedding"] = "features"
    """Outputs whose similarities are compared: the last stage's maps, or the embedding."""

    @model_validator(mode="after")
    def _check(self) -> "SP":
        if self.on == "embedding" and self.source == "cache":
            raise ValueError("a cache holds embeddings in any case; leave source out")
        return self

    def columns(self) -> tuple[Derived, ...]:
        """The last stage's maps."""
        return (StageMaps(deepest=1),)

    def student_needs(self) -> Signal:
        """Stage outputs, or embeddings."""
        return Signal.EMBEDDING if self.on == "embedding" else Signal.FEATURES

    def spots(self, student: Stages, teacher: Stages) -> Mapping[str, str]:
        """The last stage, or the embedding."""
        if self.on == "embedding":
            return {"embedding": "embedding"}
        return {feature_maps.last_stage(student): feature_maps.last_stage(teacher)}

    def check(self, student: Shapes, teacher: Shapes) -> None:
        """Raise `ConfigError` where features are compared and a network has no stages."""
        if self.on == "features":
            feature_maps.last_shape(student, self.name)
            feature_maps.last_shape(teacher, self.name)

    def spot_loss(self, student: Tensor, teacher: Tensor, helpers: nn.ModuleDict) -> Tensor:
        """Mean squared difference of the similarity matrices."""
        return similarity_loss(student, teacher)
