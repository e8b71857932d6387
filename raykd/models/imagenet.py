"""Classifiers of torchvision and timm, seen as stages, with their published weights.

The library builds the network, and it stays whole. `SPLITS` says in which order its children
run and where a stage ends; what the library's own `forward` does between the children (a
flatten, a mean) is glue without parameters.
"""

from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import Permute

from raykd.errors import ConfigError
from raykd.models.staged import Staged, parameter_count
from raykd.registry import nearest

Colour = tuple[float, float, float]  # red, green, blue


class Split(NamedTuple):
    """Which children of a network make its stages, its pooling and its classifier, in order.

    A word is a child ("features.0"), a range of its children ("features[:-1]", or "[:-3]" of the
    network itself) or a piece of `GLUE` ("flatten()"). A bar ends a stage; without bars, a stage
    begins at each child with a stride. Without stages, the pooling maps pixels to the embedding.
    """

    stages: str
    pool: str
    classifier: str


_WHOLE = Split("", "whole()", "same()")  # for a classifier that is no single layer: D is C
_TRUNK = Split("", "trunk() head()", "last()")  # timm's common interface
_LAYERS = "layer1 | layer2 | layer3 | layer4"
_STAGES = "stem | stages.0 | stages.1 | stages.2 | stages.3"
_TAIL = "features[-1:] avgpool flatten() classifier[:-1]"
_FEATURES = Split("features[:-1]", _TAIL, "classifier[-1:]")
_SWIN = "".join(f" | nhwc() features[{n}:{n + 2}] nchw()" for n in (2, 4, 6))
_CONVNEXT = "features.0 | features.1 | features[2:4] | features[4:6] | features[6:]"
_REGNET = "stem" + "".join(f" | trunk_output.block{n}" for n in (1, 2, 3, 4))

# By library, and by the file that defines the network. A 1x1 convolution that only widens the
# last map belongs to the pooling, as in the CRD benchmark's MobileNetV2 and ShuffleNetV2.
# The ReLU at the end of DenseNet works in place there: a stage must not end before it.
# SqueezeNet averages its scores after a ReLU: nothing pooled determines them but themselves.
SPLITS: dict[str, dict[str, Split]] = {
    "torchvision": {
        "alexnet": _FEATURES,
        "convnext": Split(_CONVNEXT, "avgpool classifier[:-1]", "classifier.2"),
        "densenet": Split("features[:] relu()", "average() flatten()", "classifier"),
        "efficientnet": _FEATURES,
        "googlenet": Split("recolour() [:-3]", "avgpool flatten() dropout", "fc"),
        "inception": Split("recolour() [:-3]", "avgpool dropout flatten()", "fc"),
        "maxvit": Split(_STAGES.replace("stages", "blocks"), "classifier[:-1]", "classifier.5"),
        "mnasnet": Split(
            "layers[:-3]", "layers[-3:] average() flatten() classifier.0", "classifier.1"
        ),
        "mobilenetv2": _FEATURES._replace(pool=_TAIL.replace("avgpool", "average()")),
        "mobilenetv3": _FEATURES,
        "regnet": Split(_REGNET, "avgpool flatten()", "fc"),
        "resnet": Split("conv1 bn1 relu maxpool | " + _LAYERS, "avgpool flatten()", "fc"),
        "shufflenetv2": Split(
            "conv1 maxpool | stage2 | stage3 | stage4", "conv5 average() flatten()", "fc"
        ),
        "squeezenet": Split("features[:]", "classifier flatten()", "same()"),
        "swin_transformer": Split(
            "features.0 nchw() | nhwc() features.1 nchw()" + _SWIN,
            "nhwc() norm permute avgpool flatten()",
            "head",
        ),
        "vgg": _FEATURES,
        "vision_transformer": Split("", "tokens()", "heads.head"),
    },
    "timm": {
        "convnext": Split(_STAGES, "norm_pre head()", "last()"),
        "densenet": Split("features[:]", "head()", "last()"),
        "efficientnet": Split("conv_stem bn1 blocks[:]", "conv_head bn2 head()", "last()"),
        "mobilenetv3": Split("conv_stem bn1 blocks[:]", "head()", "last()"),
        "regnet": Split("stem | s1 | s2 | s3 | s4", "final_conv head()", "last()"),
        "resnet": Split("conv1 bn1 act1 maxpool | " + _LAYERS, "head()", "last()"),
        "resnetv2": Split(_STAGES, "norm head()", "last()"),
        "vgg": Split("features[:-1]", "features[-1:] head()", "last()"),
        # Their forward_head does more between the embedding and the last layer.
        "efficientvit_msra": _WHOLE,
        "shvit": _WHOLE,
        "volo": _WHOLE,
    },
}


def check_name(library: str, name: str) -> None:
    """Raise `ConfigError`, with the nearest name, where `library` has no classifier `name`."""
    if library not in SPLITS:
        hint = nearest(library, SPLITS) or f"; there are: {', '.join(SPLITS)}"
        raise ConfigError(f"no library of networks is called {library!r}{hint}")
    if library == "timm":
        known = _timm().list_models()
    else:
        known = torchvision.models.list_models(module=torchvision.models)  # classifiers only
    if name not in known:
        raise ConfigError(f"{library} has no classifier called {name!r}{nearest(name, known)}")


def build(library: str, name: str, classes: int, weights: str | None = None) -> Staged:
    """A library's classifier with `classes` outputs and no auxiliary ones.

    `weights` is a name of torchvision's ("IMAGENET1K_V2"), a tag of timm's ("a1_in1k") or
    "DEFAULT"; None starts from torch's global generator. Raises `ConfigError` for weights that
    do not exist, know another number of classes, or cannot be downloaded.
    """
    check_name(library, name)
    network = _network(library, name, classes, weights)
    if library == "timm" and not hasattr(network, "get_classifier"):
        raise ConfigError(f"timm/{name} is an encoder without a classifier")
    split = SPLITS[library].get(type(network).__module__.rpartition(".")[2]) or _other(network)
    stages = {
        f"stage{number}" if number else "stem": nn.Sequential(*parts)
        for number, parts in enumerate(_stages(network, split.stages))
    }
    pool = nn.Sequential(*_parts(network, split.pool))
    return Staged(network, stages, pool, *_parts(network, split.classifier))


def preprocessing(library: str, name: str, weights: str) -> tuple[Colour, Colour]:
    """Mean and standard deviation that pixels in 0 to 1 are normalised by for `weights`."""
    check_name(library, name)
    published = _published(library, name, weights)
    if library == "timm":
        constants = _timm().get_pretrained_cfg(published)
    else:
        constants = published.transforms()
    return tuple(constants.mean), tuple(constants.std)


def _network(library: str, name: str, classes: int, weights: str | None) -> nn.Module:
    """The library's own network; see `build`."""
    if weights is None:
        if library == "timm":
            return _timm().create_model(name, num_classes=classes)
        # These two warn until they are told how to start.
        auxiliary = name in ("googlenet", "inception_v3")
        options = {"aux_logits": False, "init_weights": True} if auxiliary else {}
        return torchvision.models.get_model(name, num_classes=classes, **options)
    published = _published(library, name, weights)
    if library == "timm":
        known = _timm().get_pretrained_cfg(published).num_classes
        make = partial(_timm().create_model, published, pretrained=True)
    else:
        known = len(published.meta["categories"])
        make = partial(torchvision.models.get_model, name, weights=published, progress=False)
    if known != classes:
        raise ConfigError(
            f"the weights {weights!r} of {library}/{name} know {known} classes, and {classes} "
            "were asked for. Leave the weights out to start from random numbers."
        )
    try:
        network: Any = make(num_classes=classes)
    except (OSError, HTTPException, RuntimeError) as error:
        # torch.hub has no type of its own for a file that came through damaged.
        if isinstance(error, RuntimeError) and "invalid hash" not in str(error):
            raise
        raise ConfigError(
            f"could not download the weights {weights!r} of {library}/{name} ({error}). Where "
            "there is no internet, set TORCH_HOME (timm: HF_HOME) to the cache of a machine "
            "that has built this network."
        ) from error
    if getattr(network, "aux_logits", False):
        # torchvision refuses aux_logits=False together with inception_v3's weights (0.29).
        network.aux_logits, network.AuxLogits = False, None
    return network


def _published(library: str, name: str, weights: str) -> Any:
    """What the library calls `weights`: a torchvision enum, or timm's "resnet18.a1_in1k"."""
    known: dict[str, Any]
    if library == "timm":
        names = _timm().list_pretrained(f"{name}.*")
        known = {"DEFAULT": name} if names else {}
        known |= {full.partition(".")[2]: full for full in names}
    else:
        known = dict(torchvision.models.get_model_weights(name).__members__)
    if weights not in known:
        there = ", ".join(known) or "none"
        raise ConfigError(f"{library}/{name} has no weights called {weights!r}; there are: {there}")
    return known[weights]


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ConfigError("timm is not installed; run `pip install raykd[timm]`") from None
    return timm


def _other(network: Any) -> Split:
    """The split of a network that the table lacks, without stages."""
    last = network.get_classifier() if hasattr(network, "get_classifier") else None
    return _TRUNK if isinstance(last, nn.Linear | nn.Conv2d) else _WHOLE


def _stages(network: nn.Module, words: str) -> list[list[nn.Module]]:
    """The parts of each stage, in order; see `Split` for the words."""
    if "|" in words:
        return [_parts(network, stage) for stage in words.split("|")]
    stages: list[list[nn.Module]] = []
    for part in _parts(network, words):
        strides = [getattr(module, "stride", 1) for module in part.modules()]
        halves = any(stride not in (1, (1, 1)) for stride in strides)
        # What comes before the first parameter (`recolour`) is no stage of its own.
        if not stages or (halves and parameter_count(nn.ModuleList(stages[-1])) > 0):
            stages.append([])
        stages[-1].append(part)
    return stages


def _parts(network: nn.Module, words: str) -> list[nn.Module]:
    parts: list[nn.Module] = []
    for word in words.split():
        child, bracket, bounds = word.partition("[")
        if word.endswith("()"):
            parts.append(GLUE[word[:-2]](network))
        elif bracket:
            start, stop = bounds[:-1].split(":")
            inside = list(network.get_submodule(child).children())
            parts += inside[int(start or 0) : int(stop or len(inside))]
        else:
            parts.append(network.get_submodule(word))
    return parts


def _last(network: Any) -> nn.Module:
    """timm's last layer; where it is a 1x1 convolution, one that takes [B, D]."""
    classifier = network.get_classifier()
    if isinstance(classifier, nn.Conv2d):
        return nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), classifier, nn.Flatten())
    return classifier


class _Borrowed(nn.Module):
    """A piece of a network's own `forward`. It owns no parameters: they stay the network's."""

    network: Any

    def __init__(self, run: Callable[[Any, Tensor], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.run = run
        vars(self)["network"] = network  # kept out of nn.Module's registers

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.network, x)


def _recolour(network: Any, pixels: Tensor) -> Tensor:
    """Pixels as GoogLeNet's published weights expect them; the same ones without weights."""
    return network._transform_input(pixels)


def _tokens(network: Any, pixels: Tensor) -> Tensor:
    """The class token [B, D] of torchvision's vision transformers, after the encoder."""
    patches = network._process_input(pixels)
    token = network.class_token.expand(len(pixels), -1, -1)
    return network.encoder(torch.cat([token, patches], dim=1))[:, 0]


def _trunk(network: Any, pixels: Tensor) -> Tensor:
    return network.forward_features(pixels)


def _head(network: Any, x: Tensor) -> Tensor:
    return network.forward_head(x, pre_logits=True)


GLUE: dict[str, Callable[[Any], nn.Module]] = {
    "average": lambda network: nn.AdaptiveAvgPool2d(1),
    "flatten": lambda network: nn.Flatten(),
    "head": partial(_Borrowed, _head),
    "last": _last,
    "nchw": lambda network: Permute([0, 3, 1, 2]),
    "nhwc": lambda network: Permute([0, 2, 3, 1]),
    "recolour": partial(_Borrowed, _recolour),
    "relu": lambda network: nn.ReLU(),
    "same": lambda network: nn.Identity(),
    "tokens": partial(_Borrowed, _tokens),
    "trunk": partial(_Borrowed, _trunk),
    "whole": lambda network: network,
}
