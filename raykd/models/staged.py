"""The shape that every network takes here: named stages in order, a pooling, a linear classifier.

Features are a plain loop over the stages, or come from the library's own function for them.
Forward hooks are not used: they break under the prefixes of a data-parallel wrapper and under
`torch.compile`.

Shapes: B batch, C classes, D embedding width, K channels, H, W pixels.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raykd.core.errors import ConfigError
from raykd.core.types import MAP_SUFFIX, Network, Outputs, Shapes, Signal

Through = Callable[  # the signature of Staged.through
    ..., tuple[Tensor | None, Tensor, dict[str, Tensor]]
]
BEFORE = "before" + MAP_SUFFIX  # key of `intermediates`: the block before the last one
NO_NORMS: Mapping[str, nn.BatchNorm2d] = MappingProxyType({})


class NoClassifier(nn.Module):
    """The classifier of a backbone: it has no logits."""

    def forward(self, embedding: Tensor) -> None:
        """None."""


class Rectified(nn.Sequential):
    """A stage that ends in a ReLU and can return its pre-activation, too."""

    def forward(self, x: Tensor) -> Tensor:
        """The stage's output."""
        return self.rectify(super().forward(x), inplace=True)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output before the last ReLU, and after it."""
        before = super().forward(x)
        return before, self.rectify(before, inplace=False)

    def rectify(self, before: Tensor, *, inplace: bool) -> Tensor:
        """The end of the stage; where `inplace`, it may overwrite `before`."""
        return F.relu(before, inplace=inplace)


class Staged(Network):
    """A plain network, seen as stages, pooling and classifier.

    `network` is the plain module that owns every parameter: `student.network.state_dict()`
    has no prefix of ours and loads into the plain network. `stages`, `pool` and `classifier`
    are parts of it (or parameter-free glue between its parts), and running them in order
    must give what the network gives.

    Some networks of libraries carry more than a map from stage to stage (a transformer's class
    token). They have no `stages`; `intermediates` computes their maps: [B, 3, H, W] -> (embedding,
    stage -> [B, K, H, W]), and `pool` is everything from the pixels to the embedding. Tokens that
    belong to no place (the class token, registers) are "stage2.prefix" [B, P, K] beside the map.
    Where the patches go through a last norm, the map of what they are then is "stage4.map". Asked
    for `blocks`, they have the block before the last one, after the same norm, as "before.map".

    `norms` are the batch norms behind the pre-activations of the stages that have one. The
    pre-activation of a stage is what a `Rectified` one has before its ReLU; where a stage ends
    in a sum that is normalised only later (pre-activation networks), its norm of the output;
    where it ends in no ReLU at all, the output.

    With a `side`, pixels of any size are first brought to a square of that side.
    """

    intermediates: nn.Module | None
    side: int | None = None  # pixels

    def __init__(
        self,
        network: nn.Module,
        stages: Mapping[str, nn.Module],
        pool: nn.Module,
        classifier: nn.Module,
        norms: Mapping[str, nn.BatchNorm2d] = NO_NORMS,
        *,
        normalised_later: bool = False,
        intermediates: nn.Module | None = None,
    ) -> None:
        """`normalised_later`: `norms` act on the stages' outputs, in what follows them."""
        super().__init__()
        self.network = network
        self.normalised_later = normalised_later
        # Kept out of nn.Module's registers: the parameters belong to `network` alone.
        vars(self)["stages"] = dict(stages)
        vars(self)["pool"] = pool
        vars(self)["classifier"] = classifier
        vars(self)["norms"] = dict(norms)
        vars(self)["intermediates"] = intermediates

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, C] for normalised pixels [B, 3, H, W]; a backbone's embedding [B, D]."""
        logits, embedding, _ = self.through(pixels, before=False, after=False)
        return embedding if logits is None else logits

    def outputs(self, pixels: Tensor, wanted: Signal, through: Through | None = None) -> Outputs:
        """The wanted signals for normalised pixels [B, 3, H, W].

        Logits are always there, unless the network is a backbone without a classifier.

        `through` stands for the method of that name: what was compiled of it.
        """
        run = self.through if through is None else through
        logits, embedding, features = run(
            pixels,
            before=Signal.PREACTIVATIONS in wanted,
            after=Signal.FEATURES in wanted,
            tokens=Signal.TOKENS in wanted,
            dense=Signal.MAP in wanted,
            blocks=Signal.BLOCKS in wanted,
        )
        return Outputs(
            logits,
            MappingProxyType(features),
            embedding if Signal.EMBEDDING in wanted else None,
            self if Signal.LIVE in wanted else None,
            pixels if Signal.PIXELS in wanted else None,
            classifier=self.classifier if Signal.CLASSIFIER in wanted else None,
        )

    def through(
        self,
        pixels: Tensor,
        *,
        before: bool,
        after: bool,
        tokens: bool = False,
        dense: bool = False,
        blocks: bool = False,
    ) -> tuple[Tensor | None, Tensor, dict[str, Tensor]]:
        """Logits, embedding, and maps of the stages: of `before` and `after` their last ReLU.

        With `tokens` the prefix tokens are there, too, and with `dense` the last map: with `blocks`
        after that of the block before it, or of the stage before where stages are no blocks of one
        width, brought to its size. The logits of a backbone are None.
        """
        features: dict[str, Tensor] = {}
        pixels = self.resized(pixels)
        if self.intermediates is not None and (before or after or tokens or dense):
            embedding, maps = self.intermediates(pixels, blocks)
            if dense and maps:
                *earlier, last = (name for name in maps if "." not in name)
                final = maps.get(last + MAP_SUFFIX, maps[last])
                if blocks:
                    final = _beside(maps.get(BEFORE, maps[(earlier or [last])[-1]]), final)
                features[last + MAP_SUFFIX] = final
            for name, x in maps.items():  # none ends in a ReLU of its own
                if name.endswith(MAP_SUFFIX):
                    continue
                if name.endswith(".prefix"):
                    features |= {name: x} if tokens else {}
                    continue
                features |= {f"{name}.pre": x} if before else {}
                features |= {name: x} if after else {}
            return self.classifier(embedding), embedding, features
        x = previous = pixels
        for name, stage in self.stages.items():
            previous = x
            if before:
                features[f"{name}.pre"], x = self._both(name, stage, x)
            else:
                x = stage(x)
            if after:
                features[name] = x
        if dense and self.stages:
            *_, last = self.stages
            features[last + MAP_SUFFIX] = _beside(previous, x) if blocks else x
        embedding = self.pool(x)
        return self.classifier(embedding), embedding, features

    def resized(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] at the size that the network's first part takes."""
        if self.side is None or pixels.shape[2:] == (self.side, self.side):
            return pixels
        return F.interpolate(pixels, (self.side, self.side), mode="bicubic", antialias=True)

    def _both(self, name: str, stage: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """The pre-activation and the output of a stage."""
        if isinstance(stage, Rectified):
            return stage.both(x)
        x = stage(x)
        if not self.normalised_later or name not in self.norms:
            return x, x
        norm = self.norms[name]
        if not norm.training:
            return norm(x), x
        # Not the module itself: it updates its statistics when the network comes to it.
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps), x

    def train(self, mode: bool = True) -> "Staged":
        """Switch the network, and the glue between its parts, to training or evaluation."""
        super().train(mode)
        for part in (*self.stages.values(), self.pool, self.classifier):
            part.train(mode)
        return self


def _beside(previous: Tensor, final: Tensor) -> Tensor:
    """Channels of one map before those of the last one, at whose size they are pooled."""
    size = final.shape[2:]
    if previous.shape[2:] != size:
        previous = F.adaptive_avg_pool2d(previous, (size[0], size[1]))
    return torch.cat([previous, final], dim=1)


def in_order(
    parts: OrderedDict[str, nn.Module],
    norms: Mapping[str, nn.BatchNorm2d] = NO_NORMS,
    *,
    normalised_later: bool = False,
) -> Staged:
    """The network that runs `parts` in order: its stages, then its "pool" and its "classifier"."""
    stages = {name: part for name, part in parts.items() if name not in ("pool", "classifier")}
    return Staged(
        nn.Sequential(parts),
        stages,
        parts["pool"],
        parts["classifier"],
        norms,
        normalised_later=normalised_later,
    )


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Tensors are made on the meta device: shapes without memory, and without initial values."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Mode in which tensors of the meta device are not filled with random values.

    For a normal distribution there, torch would import its compiler: 1.5 CPU seconds a process.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, unless it only draws."""
        if func in (Tensor.normal_, Tensor.uniform_) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def unallocated(make: Callable[[], Staged]) -> Staged:
    """The network that `make` builds, on the meta device: shapes and names, without memory.

    On the CPU where it computes with tensors while it is built, as torchvision's regnets do.
    """
    try:
        with on_meta():
            return make()
    except NotImplementedError:
        return make()


def classifier_name(network: Staged) -> str:
    """The name of the classifier in the plain network; "" where it is no module of its own."""
    names = {id(module): name for name, module in network.network.named_modules()}
    return names.get(id(network.classifier), "")


def without_classifier(network: Staged) -> Staged:
    """A network as a backbone: its last layer gives way to an identity without parameters.

    Raises `ConfigError` where the last layer is no part of its own.
    """
    name = classifier_name(network)
    if not name:
        raise ConfigError("its scores are no linear map of an embedding, so it is no backbone")
    network.network.set_submodule(name, nn.Identity())
    vars(network)["classifier"] = NoClassifier()
    return network


def he_normal(network: nn.Module) -> None:
    """Start every k x k convolution from N(0, 2 / (k**2 K_out)), its bias from 0.

    He et al. 2015 (arXiv 1502.01852), section 2.2, over the fan out; K_out counts the output
    channels of all groups together, also where the convolution is depthwise.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def measure(network: Staged, size: tuple[int, int]) -> Shapes:
    """The sizes of a network's outputs for images of `size` (H, W), from one zero image.

    Leaves the network as it was: the pass is in evaluation mode and without gradients.
    """
    modes = [(module, module.training) for module in network.modules()]
    weight = next(network.parameters())
    network.eval()
    with torch.no_grad():
        pixels = torch.zeros(1, 3, *size, dtype=weight.dtype, device=weight.device)
        out = network.outputs(pixels, Signal.LOGITS | Signal.EMBEDDING | Signal.FEATURES)
    for module, training in modes:
        module.training = training
    maps = {name: value.shape[1:] for name, value in out.features.items()}
    return Shapes(
        classes=out.logits.shape[1] if out.has_logits else 0,
        embedding=out.embedding.shape[1],
        features={name: (k, h, w) for name, (k, h, w) in maps.items()},
        sequential=network.intermediates is None,
    )


def parameter_count(network: nn.Module) -> int:
    """Number of learned values: batch-norm weights and biases included, buffers not."""
    return sum(parameter.numel() for parameter in network.parameters())
