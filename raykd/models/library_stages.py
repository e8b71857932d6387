"""Stages of torchvision's and timm's networks.

Where a network's `forward` runs its children one after another, `SPLITS` says where a stage ends;
the network stays whole, and what `forward` does between the children (a flatten, a mean) is glue
without parameters. Other networks have the intermediate maps that their library computes: timm's
`forward_intermediates`, or the blocks of torchvision's vision transformers. Both can be had
together with the logits from one pass, and the logits are equal to `forward`'s bit for bit.

Shapes: B batch, N tokens, D width of a token, K channels, H, W pixels.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import Permute

from raykd.core.types import MAP_SUFFIX
from raykd.models.staged import BEFORE, Staged, parameter_count


class Split(NamedTuple):
    """The children of a network that make its stages, its pooling and its classifier, in order.

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
        "vision_transformer": Split("", "token()", "heads.head"),
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


def staged(library: str, network: nn.Module) -> Staged:
    """A library's network with its stages: by the table, or by the library's intermediate maps.

    A network of timm that is not in the table and has no `forward_intermediates` has no stages.
    """
    split = SPLITS[library].get(type(network).__module__.rpartition(".")[2]) or _other(network)
    stages = {
        f"stage{number}" if number else "stem": nn.Sequential(*parts)
        for number, parts in enumerate(_stages(network, split.stages))
    }
    pool = nn.Sequential(*_parts(network, split.pool))
    (classifier,) = _parts(network, split.classifier)
    intermediates = None if stages else _intermediates(library, network, split)
    return Staged(network, stages, pool, classifier, intermediates=intermediates)


def _other(network: Any) -> Split:
    """The split of a network of timm that the table lacks, without stages."""
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
    """The modules that the words of a `Split` name."""
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


def _intermediates(library: str, network: Any, split: Split) -> nn.Module | None:
    """The module behind `Staged.intermediates` for a network without stages of its own."""
    if library == "torchvision":
        blocks = _cuts(len(network.encoder.layers))
        run: Callable[[Any, Tensor], Any] = partial(_encoder_maps, _numbered(blocks, stem=False))
    elif hasattr(network, "forward_intermediates") and hasattr(network, "feature_info"):
        reductions = [entry["reduction"] for entry in network.feature_info]
        stages = _numbered(_chosen(reductions), stem=reductions[0] <= 2)
        run = partial(_timm_maps, stages, split is not _WHOLE)
    else:
        return None
    return _Borrowed(run, network)


def _chosen(reductions: list[int]) -> list[int]:
    """Indices of the maps that are stages, from the sides of the image over those of each map.

    All of up to five; of more, the last of each resolution; of more of one resolution (the blocks
    of a plain transformer), those of `_cuts`.
    """
    if len(reductions) <= 5:
        return [*range(len(reductions))]
    last = {reduction: index for index, reduction in enumerate(reductions)}
    return [*last.values()] if len(last) > 1 else _cuts(len(reductions))


def _cuts(blocks: int) -> list[int]:
    """Indices of the blocks that end a stage: 1, 3, 9 and 11 of 12.

    Those of OFA-KD for DeiT and ViT (Hao et al. 2023, arXiv 2310.19444, its code); the proportion
    for other depths is ours.
    """
    return sorted({max(1, round(blocks * part)) - 1 for part in (1 / 6, 1 / 3, 5 / 6, 1)})


def _numbered(indices: Sequence[int], *, stem: bool) -> dict[str, int]:
    """Indices by stage: from the stem on where there is one, otherwise from stage1 on."""
    first = 0 if stem else 1
    return {f"stage{n}" if n else "stem": index for n, index in enumerate(indices, first)}


def _last(network: Any) -> nn.Module:
    """timm's last layer; where it is a 1x1 convolution, one that takes [B, D]."""
    classifier = network.get_classifier()
    if isinstance(classifier, nn.Conv2d):
        return nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), classifier, nn.Flatten())
    return classifier


class _Borrowed(nn.Module):
    """A function of a network as a module. It owns no parameters: they stay the network's."""

    network: Any

    def __init__(self, run: Callable[[Any, Tensor], Any], network: nn.Module) -> None:
        super().__init__()
        self.run = run
        vars(self)["network"] = network  # kept out of nn.Module's registers

    def forward(self, x: Tensor, *options: Any) -> Any:
        return self.run(self.network, x, *options)


def _recolour(network: Any, pixels: Tensor) -> Tensor:
    """Pixels as GoogLeNet's published weights expect them; the same ones without weights."""
    return network._transform_input(pixels)


def _class_token(network: Any, pixels: Tensor) -> Tensor:
    """The class token [B, D] of torchvision's vision transformers, after the encoder."""
    return network.encoder(_tokens(network, pixels))[:, 0]


def _tokens(network: Any, pixels: Tensor) -> Tensor:
    """The encoder's input [B, 1 + N, D]: the class token, then the patches row by row."""
    patches = network._process_input(pixels)
    token = network.class_token.expand(pixels.shape[0], -1, -1)  # len() fixes B in an export
    return torch.cat([token, patches], dim=1)


def _encoder_maps(
    stages: Mapping[str, int], network: Any, pixels: Tensor, blocks: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The class token as above, and after some blocks the patch tokens as maps [B, D, h, w].

    Beside each, the class token of that block [B, 1, D]; and the last map after the last norm.

    torchvision's own feature extractor keeps references to parameters (the class token, the
    positions) that FSDP replaces (0.29), so the encoder's blocks are run here.
    """
    encoder, side = network.encoder, network.image_size // network.patch_size
    x = encoder.dropout(_tokens(network, pixels) + encoder.pos_embedding)
    outputs = [x := block(x) for block in encoder.layers]
    maps = {
        stage: outputs[index][:, 1:].mT.unflatten(2, (side, side))
        for stage, index in stages.items()
    }
    prefixes = {f"{stage}.prefix": outputs[index][:, :1] for stage, index in stages.items()}
    x, (*_, last) = encoder.ln(x), stages
    normed = {last + MAP_SUFFIX: x[:, 1:].mT.unflatten(2, (side, side))}
    if blocks and len(outputs) > 1:
        normed[BEFORE] = encoder.ln(outputs[-2])[:, 1:].mT.unflatten(2, (side, side))
    return x[:, 0], maps | prefixes | normed


def _timm_maps(
    stages: Mapping[str, int], pooled: bool, network: Any, pixels: Tensor, blocks: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The embedding (the logits unless `pooled`), maps [B, K, H, W], and prefix tokens [B, P, K].

    Prefix tokens are the class token and registers, of networks that have any. Of those that end in
    tokens, the last map after the last norm is there, too, and with `blocks` that of the block
    before.
    """
    before = _before_last(network, stages) if blocks else []
    indices = sorted({*stages.values(), *before})
    options: dict[str, Any] = {"indices": indices, "output_fmt": "NCHW"}
    tokens: dict[str, Tensor] = {}
    if getattr(network, "num_prefix_tokens", 0) and _returns_prefixes(type(network)):
        options["return_prefix_tokens"] = True
    x, maps = network.forward_intermediates(pixels, **options)
    found = dict(zip(indices, maps, strict=True))
    if "return_prefix_tokens" in options:
        tokens = {f"{stage}.prefix": found[index][1] for stage, index in stages.items()}
        found = {index: pair[0] for index, pair in found.items()}
    embedding = network.forward_head(x, pre_logits=pooled)
    *_, last = stages
    size = found[stages[last]].shape[2:]
    patches = x[:, getattr(network, "num_prefix_tokens", 0) :] if x.dim() == 3 else None
    if patches is not None and patches.shape[1] == size.numel():
        tokens[last + MAP_SUFFIX] = patches.mT.unflatten(2, size)
        for index in before:
            tokens[BEFORE] = network.norm(found[index].flatten(2).mT).mT.unflatten(2, size)
    return embedding, {stage: found[index] for stage, index in stages.items()} | tokens


def _before_last(network: Any, stages: Mapping[str, int]) -> list[int]:
    """The index of the block before the last one of a plain transformer of timm's; else none."""
    *_, last = stages.values()
    blocks = getattr(network, "blocks", ())
    return [last - 1] if hasattr(network, "norm") and len(blocks) == last + 1 > 1 else []


@cache
def _returns_prefixes(kind: type) -> bool:
    """True where `forward_intermediates` of a class of timm's can return prefix tokens, too."""
    parameters = inspect.signature(getattr(kind, "forward_intermediates")).parameters  # noqa: B009
    return "return_prefix_tokens" in parameters


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
    "token": partial(_Borrowed, _class_token),
    "trunk": partial(_Borrowed, _trunk),
    "whole": lambda network: network,
}
