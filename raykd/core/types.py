"""Types that every room shares: the outputs of a network, and batches.

Shapes: B batch, C classes, D embedding width, K channels, H, W pixels.
"""

import copy
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor, nn

NOTHING: Mapping[str, Tensor] = MappingProxyType({})
MAP_SUFFIX = ".map"  # in `features`, of the last map


class Signal(enum.Flag):
    """Signals of a network that a method reads; as text, their names: "features, live"."""

    LOGITS = enum.auto()  # class scores [B, C]
    EMBEDDING = enum.auto()  # pooled features [B, D]
    FEATURES = enum.auto()  # stage outputs [B, K, H, W]
    LIVE = enum.auto()  # the network itself, to run again; the student's is always there
    PREACTIVATIONS = enum.auto()  # stage outputs before their last ReLU, named "stage2.pre"
    PIXELS = enum.auto()  # the pixels, such that the logits can be differentiated by them
    CLASSIFIER = enum.auto()  # the last layer, to run again on other embeddings
    TOKENS = enum.auto()  # class and register tokens [B, P, D] after stages, as "stage2.prefix"
    MAP = enum.auto()  # the last map [B, K, H, W], or a transformer's patches, as "stage4.map"
    BLOCKS = enum.auto()  # that MAP is [B, 2 K, H, W]: before the last block's, the one before it
    DERIVED = enum.auto()  # columns that a method's functions make of the teacher's outputs

    def __str__(self) -> str:
        return ", ".join(signal.name.lower() for signal in Signal if signal in self and signal.name)


# Signals that need no live teacher; the classifier is loaded beside a cache.
CACHEABLE = (
    Signal.LOGITS
    | Signal.EMBEDDING
    | Signal.CLASSIFIER
    | Signal.MAP
    | Signal.BLOCKS
    | Signal.DERIVED
)

# One way to show the samples of a batch: as the run's augmentation says ("given"), before mixing
# ("clean"), their mixing partners ("partner"), strongly augmented ("strong"), or at the resolution
# of the teacher, where that is another one ("teacher"). Of a cached teacher there is also the mean
# of what it says of the given look over all views ("view_mean"), for which nothing is shown.
Look = Literal["given", "clean", "partner", "strong", "teacher", "view_mean"]

# The mean of several teachers' answers that stands for them; none: each is handed on.
Combination = Literal["mean_probabilities", "mean_logits", "none"]


@dataclass(frozen=True)
class Shapes:
    """Sizes of one network's outputs for one sample."""

    classes: int
    embedding: int
    features: Mapping[str, tuple[int, int, int]]  # stage -> (K, H, W), in depth order
    sequential: bool = True  # the stages are modules that can be run one after another
    panel: "tuple[Shapes, ...]" = ()  # one each for teachers that are handed on whole


class Network(nn.Module):
    """Base class of networks in named stages, as far as methods run parts of them again.

    `models.staged` describes the parts and builds them.
    """

    stages: Mapping[str, nn.Module]
    pool: nn.Module
    classifier: nn.Module
    norms: Mapping[str, nn.BatchNorm2d]


def by_depth(name: str) -> tuple[int, str]:
    """Key by which the names of stages, or of their columns of one kind, are in depth order."""
    return len(name), name


class Outputs:
    """Outputs of one network for one batch; only the requested signals are there.

    `features` maps a stage to [B, K, H, W]. `logits` [B, C], `embedding` [B, D], `pixels`
    [B, 3, H, W], `network`, `classifier` (from embeddings to logits), `derived` (from the name of
    a column, which begins with its spot, to [B, ...]) and other looks raise
    `LookupError` where they were not requested, or where the network or a cache lacks them.

    Where a cache keeps some classes only, `moments` [B, 2] are mean and population deviation of
    the row of all classes, on the scale of the logits. Where all other classes are one, the last
    of `logits` [B, k + 1], `kept` (int64 [B, k]) are the classes of those before it.

    `modules` are there while functions of columns that run them are evaluated.

    Of several teachers that are handed on whole, `panel` are the outputs of each, the first of
    which has the other attributes, too.
    """

    logits: Tensor
    embedding: Tensor
    network: Network
    pixels: Tensor
    classifier: nn.Module
    derived: Mapping[str, Tensor]
    modules: nn.ModuleDict

    def __init__(
        self,
        logits: Tensor | None = None,
        features: Mapping[str, Tensor] = NOTHING,
        embedding: Tensor | None = None,
        network: Network | None = None,
        pixels: Tensor | None = None,
        looks: "Mapping[Look, Outputs]" = MappingProxyType({}),
        classifier: nn.Module | None = None,
        moments: Tensor | None = None,
        kept: Tensor | None = None,
        panel: "tuple[Outputs, ...]" = (),
        derived: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.features = features
        self.panel = panel
        self.moments = moments
        self.kept = kept
        self._looks = looks
        requested = {
            "logits": logits,
            "embedding": embedding,
            "network": network,
            "pixels": pixels,
            "classifier": classifier if network is None else network.classifier,
            "derived": derived,
        }
        for name, value in requested.items():
            if value is not None:
                setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        """Explain why a signal is not there; Python calls this for attributes that are not set."""
        if name not in _REQUESTS:
            raise AttributeError(name)
        signal = _REQUESTS[name].name
        raise LookupError(f"these outputs have no {name}; add Signal.{signal} to needs()")

    @property
    def has_logits(self) -> bool:
        """True unless the network has no classifier, or the cache no logits."""
        return "logits" in vars(self)

    @property
    def has_embedding(self) -> bool:
        """True where the embedding was asked for, and is there."""
        return "embedding" in vars(self)

    @property
    def has_derived(self) -> bool:
        """True where a method's functions were asked for."""
        return "derived" in vars(self)

    @property
    def map_stage(self) -> str:
        """Name of the stage that the last map is of. Raises `LookupError` without one."""
        for name in self.features:
            if name.endswith(MAP_SUFFIX):
                return name.removesuffix(MAP_SUFFIX)
        raise LookupError("these outputs have no map; add Signal.MAP to needs()")

    @property
    def map(self) -> Tensor:
        """The last map [B, K, H, W], after the network's last norm. Raises `LookupError`."""
        return self.features[self.map_stage + MAP_SUFFIX]

    @property
    def stages(self) -> Mapping[str, object]:
        """The features by stage, in depth order, after the stages that derived columns are of."""
        if any("." not in name for name in self.features):
            return self.features
        spots = {name.partition(".")[0] for name in vars(self).get("derived", NOTHING)}
        return {**dict.fromkeys(sorted(spots, key=by_depth)), **self.features}

    @property
    def any_tensor(self) -> Tensor:
        """One of the tensors, for its device and type."""
        values = [vars(self).get(name) for name in ("logits", "embedding")]
        values += [*self.features.values(), *vars(self).get("derived", NOTHING).values()]
        return next(value for value in values if value is not None)

    def look(self, look: Look) -> "Outputs":
        """Outputs of the network for another look at these samples."""
        if look not in self._looks:
            raise LookupError(f"these outputs have no {look!r} look; name it in looks()")
        return self._looks[look]

    def replace(self, **values: Any) -> "Outputs":
        """Copy with other values of the named attributes."""
        other = copy.copy(self)
        vars(other).update(values)
        return other

    def with_looks(self, looks: "Mapping[Look, Outputs]") -> "Outputs":
        """Copy with the outputs of other looks at these samples."""
        return self.replace(_looks=looks)

    def rows(self, keep: Mapping[str, Tensor]) -> "Outputs":
        """Copy with only the rows `keep[spot]` (int64 [n]) of each spot.

        A spot is "logits", "embedding" or a stage, with its pre-activation and what is derived of
        it; a spot that `keep` lacks keeps every row. Other looks lose the same rows; the pixels
        keep all of theirs.
        """

        def kept(spot: str, value: Tensor) -> Tensor:
            stage = spot.partition(".")[0]
            if stage not in keep:
                return value
            if value.dim() < 4:
                return value.index_select(0, keep[stage])
            # Selected with the channels last, as they lie in memory, and so they stay.
            rows = value.permute(0, 2, 3, 1).index_select(0, keep[stage])
            return rows.permute(0, 3, 1, 2)

        answers: dict[str, Any] = {
            name: kept("embedding" if name == "embedding" else "logits", value)
            for name, value in vars(self).items()
            if name in ("logits", "moments", "kept", "embedding") and value is not None
        }
        if self.has_derived:
            answers["derived"] = {name: kept(name, value) for name, value in self.derived.items()}
        return self.replace(
            **answers,
            features={stage: kept(stage, value) for stage, value in self.features.items()},
            _looks={look: outputs.rows(keep) for look, outputs in self._looks.items()},
            panel=tuple(outputs.rows(keep) for outputs in self.panel),
        )


_REQUESTS = {
    "logits": Signal.LOGITS,
    "embedding": Signal.EMBEDDING,
    "network": Signal.LIVE,
    "pixels": Signal.PIXELS,
    "classifier": Signal.CLASSIFIER,
    "derived": Signal.DERIVED,
}


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
