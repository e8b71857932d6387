"""The nouns that every room shares.

Shapes: B batch, C classes, D embedding width, K channels, H, W pixels.
"""

import copy
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

if TYPE_CHECKING:
    from raykd.models.staged import Staged

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Signal(enum.Flag):
    """Signals of a network that a method reads; as text, their names: "features, live"."""

    LOGITS = enum.auto()  # class scores [B, C]
    EMBEDDING = enum.auto()  # pooled features [B, D]
    FEATURES = enum.auto()  # stage outputs [B, K, H, W]
    LIVE = enum.auto()  # the network itself, to run again; the student's is always there
    PREACTIVATIONS = enum.auto()  # stage outputs before their last ReLU, as spots "stage2.pre"
    PIXELS = enum.auto()  # the pixels, such that the logits can be differentiated by them
    CLASSIFIER = enum.auto()  # the last layer, to run again on other embeddings

    def __str__(self) -> str:
        return ", ".join(signal.name.lower() for signal in Signal if signal in self and signal.name)


# What needs no teacher in person; the classifier is loaded beside a cache.
CACHEABLE = Signal.LOGITS | Signal.EMBEDDING | Signal.CLASSIFIER

# One way of looking at the samples of a batch: as the run's augmentation says ("given"), before
# they were mixed ("clean"), what they were mixed with ("partner"), strongly augmented ("strong"),
# at the resolution of a teacher that wants another one ("teacher").
Look = Literal["given", "clean", "partner", "strong", "teacher"]


@dataclass(frozen=True)
class Shapes:
    """Sizes of one network's outputs for one sample."""

    classes: int
    embedding: int
    features: Mapping[str, tuple[int, int, int]]  # stage -> (K, H, W), in depth order
    sequential: bool = True  # the stages are modules that can be run one after another


class Outputs:
    """Outputs of one network for one batch; only the requested signals are there.

    `logits` is float [B, C], `features` maps a stage to [B, K, H, W]. `embedding` [B, D],
    `pixels` [B, 3, H, W], `network`, `classifier` and other looks raise `LookupError` where they
    were not requested, or where a cache lacks them.

    Where a cache keeps some classes only, `moments` [B, 2] are mean and population deviation of
    the row of all classes, on the scale of the logits. Where all other classes are one, the last
    of `logits` [B, k + 1], `kept` (int64 [B, k]) are the classes of those before it.
    """

    __slots__ = (
        "_classifier", "_embedding", "_looks", "_network", "_pixels",
        "features", "kept", "logits", "moments",
    )  # fmt: skip

    def __init__(
        self,
        logits: Tensor,
        features: Mapping[str, Tensor] = NOTHING,
        embedding: Tensor | None = None,
        network: "Staged | None" = None,
        pixels: Tensor | None = None,
        looks: "Mapping[Look, Outputs]" = MappingProxyType({}),
        classifier: "nn.Module | None" = None,
        moments: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> None:
        self.logits = logits
        self.features = features
        self._embedding = embedding
        self._network = network
        self._pixels = pixels
        self._looks = looks
        self._classifier = classifier
        self.moments = moments
        self.kept = kept

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

    @property
    def classifier(self) -> nn.Module:
        """The last layer of the network, from embeddings [B, D] to logits [B, C]."""
        if self._network is not None:
            return self._network.classifier
        if self._classifier is None:
            raise LookupError("these outputs have no classifier; add Signal.CLASSIFIER to needs()")
        return self._classifier

    @property
    def pixels(self) -> Tensor:
        """The pixels that the logits can be differentiated by."""
        if self._pixels is None:
            raise LookupError("these outputs have no pixels; add Signal.PIXELS to needs()")
        return self._pixels

    def look(self, look: Look) -> "Outputs":
        """Outputs of the network for another look at these samples."""
        if look not in self._looks:
            raise LookupError(f"these outputs have no {look!r} look; name it in looks()")
        return self._looks[look]

    def beside(self, looks: "Mapping[Look, Outputs]") -> "Outputs":
        """Copy with the outputs of other looks at these samples."""
        return self._but(_looks=looks)

    def of(self, pixels: Tensor) -> "Outputs":
        """Copy with the pixels that the outputs are from, or can be differentiated by."""
        return self._but(_pixels=pixels)

    def by(self, classifier: nn.Module) -> "Outputs":
        """Copy with the network's last layer."""
        return self._but(_classifier=classifier)

    def embedded(self, embedding: Tensor) -> "Outputs":
        """Copy with an embedding."""
        return self._but(_embedding=embedding)

    def answering(self, logits: Tensor) -> "Outputs":
        """Copy with other logits."""
        return self._but(logits=logits)

    def rows(self, keep: Mapping[str, Tensor]) -> "Outputs":
        """Copy with only the rows `keep[spot]` (int64 [n]) of each spot.

        A spot is "logits", "embedding" or a stage, with its pre-activation; a spot that `keep`
        lacks keeps every row. Other looks lose the same rows; the pixels keep all of theirs.
        """

        def kept(spot: str, value: Tensor) -> Tensor:
            stage = spot.removesuffix(".pre")
            if stage not in keep:
                return value
            if value.dim() < 4:
                return value.index_select(0, keep[stage])
            # Selected with the channels last, as they lie in memory, and so they stay.
            rows = value.permute(0, 2, 3, 1).index_select(0, keep[stage])
            return rows.permute(0, 3, 1, 2)

        return self._but(
            logits=kept("logits", self.logits),
            moments=None if self.moments is None else kept("logits", self.moments),
            kept=None if self.kept is None else kept("logits", self.kept),
            features={stage: kept(stage, value) for stage, value in self.features.items()},
            _embedding=None if self._embedding is None else kept("embedding", self._embedding),
            _looks={look: outputs.rows(keep) for look, outputs in self._looks.items()},
        )

    def _but(self, **changes: Any) -> "Outputs":
        """A copy with other values."""
        made = copy.copy(self)
        for name, value in changes.items():
            setattr(made, name, value)
        return made


@dataclass(frozen=True)
class Batch:
    """One worker's share of one training step."""

    pixels: Tensor  # float32 [B, 3, H, W], normalised, channels last in memory
    targets: Tensor  # int64 [B], or float32 [B, C] where samples are mixed
    ids: Tensor  # int64 [B], row in the dataset
    view: int  # which augmentation of the samples this is
    epoch: int  # from 0
    looks: "Mapping[Look, Batch]" = field(default_factory=dict)  # the same samples in other ways
    weights: Tensor | None = None  # float32 [B], of the samples where they are mixed with partners

    @property
    def labels(self) -> Tensor:
        """int64 [B]: the class, or the heavier of two where samples are mixed."""
        return self.targets if self.targets.dim() == 1 else self.targets.argmax(dim=1)

    def rows(self, keep: Tensor) -> "Batch":
        """Only some of the samples, int64 [n]; the pixels, which no method reads, stay whole."""
        return replace(
            self,
            targets=self.targets.index_select(0, keep),
            ids=self.ids.index_select(0, keep),
            looks={look: batch.rows(keep) for look, batch in self.looks.items()},
            weights=None if self.weights is None else self.weights.index_select(0, keep),
        )
