"""The nouns that every room shares.

Shapes: B batch, C classes, D embedding width, K channels, H, W pixels.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from raykd.models.staged import Staged

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Signal(enum.Flag):
    """What a method reads of a network."""

    LOGITS = enum.auto()  # class scores [B, C]
    EMBEDDING = enum.auto()  # pooled features [B, D]
    FEATURES = enum.auto()  # stage outputs [B, K, H, W]
    LIVE = enum.auto()  # the network itself, to run again on other inputs


CACHEABLE = Signal.LOGITS | Signal.EMBEDDING


@dataclass(frozen=True)
class Shapes:
    """Sizes of one network's outputs for one sample."""

    classes: int
    embedding: int
    features: Mapping[str, tuple[int, int, int]]  # stage -> (K, H, W), in depth order


class Outputs:
    """What one network said about one batch; only the signals that were asked for are there.

    `logits` is float [B, C], `features` maps a stage to [B, K, H, W]. `embedding` [B, D] and
    `network` raise `LookupError` where nobody asked for them, or where a cache lacks them.
    """

    __slots__ = ("_embedding", "_network", "features", "logits")

    def __init__(
        self,
        logits: Tensor,
        features: Mapping[str, Tensor] = NOTHING,
        embedding: Tensor | None = None,
        network: "Staged | None" = None,
    ) -> None:
        self.logits = logits
        self.features = features
        self._embedding = embedding
        self._network = network

    @property
    def embedding(self) -> Tensor:
        """Pooled features [B, D]."""
        if self._embedding is None:
            raise LookupError("these outputs have no embedding; add Signal.EMBEDDING to needs()")
        return self._embedding

    @property
    def network(self) -> "Staged":
        """The network that spoke, to run its stages again."""
        if self._network is None:
            raise LookupError("these outputs have no network; add Signal.LIVE to needs()")
        return self._network

    def rows(self, keep: Mapping[str, Tensor]) -> "Outputs":
        """The same outputs with only the rows `keep[spot]` (int64 [n]) of each spot.

        A spot is "logits", "embedding" or a stage; a spot that `keep` lacks keeps every row.
        """

        def kept(spot: str, value: Tensor) -> Tensor:
            return value.index_select(0, keep[spot]) if spot in keep else value

        return Outputs(
            kept("logits", self.logits),
            {stage: kept(stage, value) for stage, value in self.features.items()},
            None if self._embedding is None else kept("embedding", self._embedding),
            self._network,
        )


@dataclass(frozen=True)
class Batch:
    """One worker's share of one training step."""

    pixels: Tensor  # float32 [B, 3, H, W], normalised, channels last in memory
    targets: Tensor  # int64 [B], or float32 [B, C] where samples are mixed
    ids: Tensor  # int64 [B], row in the dataset
    view: int  # which augmentation of the samples this is
    epoch: int  # from 0
