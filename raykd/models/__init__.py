"""The table of networks: one line each. A name with a slash belongs to a library.

`build("resnet20", classes=10)` makes a network of this table, `build("torchvision/resnet18",
classes=10)` any classifier of torchvision, and `build("timm/...", classes=10)` any of timm
(the extra `timm`).

The table holds the networks of the CRD benchmark (Tian et al. 2020, arXiv 1910.10699), with its
own spellings of them as aliases. "MobileNetV2" means width 0.5 there, and width 1.0 in the
repository of spot-adaptive distillation (Song et al. 2022, arXiv 2205.02399).
"""

from collections.abc import Callable
from functools import partial

from raykd.core.errors import ConfigError
from raykd.core.registry import Registry
from raykd.models.imagenet_resnet import LAYERS, cifar_resnet
from raykd.models.iresnet import BLOCKS, iresnet
from raykd.models.mobilefacenet import mobilefacenet
from raykd.models.mobilenet import mobilenet_v2
from raykd.models.shufflenet import shufflenet_v1, shufflenet_v2
from raykd.models.staged import Staged, measure, parameter_count, without_classifier
from raykd.models.thin_resnet import WIDE, WIDTHS, resnet
from raykd.models.vgg import CONVOLUTIONS, vgg
from raykd.models.wide_resnet import wide_resnet

__all__ = [
    "NETWORKS",
    "Staged",
    "build",
    "check_name",
    "is_plain",
    "is_small",
    "measure",
    "origin",
    "parameter_count",
]

_SMALL = 48  # pixels per side

NETWORKS: Registry[Callable[..., Staged]] = Registry("network")
for _depth in (8, 14, 20, 32, 44, 56, 110):
    NETWORKS.add(f"resnet{_depth}", partial(resnet, _depth, WIDTHS))
for _depth in (8, 32):
    NETWORKS.add(f"resnet{_depth}x4", partial(resnet, _depth, WIDE))
for _depth, _factor in ((16, 1), (16, 2), (28, 10), (40, 1), (40, 2)):
    NETWORKS.add(f"wrn_{_depth}_{_factor}", partial(wide_resnet, _depth, _factor))
for _depth in CONVOLUTIONS:
    NETWORKS.add(f"vgg{_depth}", partial(vgg, _depth))
NETWORKS.add("mobilenet_v2_x0_5", partial(mobilenet_v2, 0.5), ["MobileNetV2"])
NETWORKS.add("mobilenet_v2_x1_0", partial(mobilenet_v2, 1.0))
NETWORKS.add("shufflenet_v1", shufflenet_v1, ["ShuffleV1"])
NETWORKS.add("shufflenet_v2", shufflenet_v2, ["ShuffleV2"])
for _depth in LAYERS:
    NETWORKS.add(f"cifar_resnet{_depth}", partial(cifar_resnet, _depth), [f"ResNet{_depth}"])
# Faces of 112 x 112 pixels, of 112 x 96 (the paper's 0.99 million parameters), and small ones.
NETWORKS.add("mobilefacenet", partial(mobilefacenet, (7, 7), True, 128))
NETWORKS.add("mobilefacenet_112x96", partial(mobilefacenet, (7, 6), True, 128))
NETWORKS.add("mobilefacenet_512", partial(mobilefacenet, (7, 7), True, 512))
NETWORKS.add("mobilefacenet_m", partial(mobilefacenet, (7, 7), True, 0))
NETWORKS.add("mobilefacenet_m_48x48", partial(mobilefacenet, (3, 3), True, 0))
NETWORKS.add("mobilefacenet_s", partial(mobilefacenet, (7, 7), False, 0))
for _depth in BLOCKS:
    NETWORKS.add(f"iresnet{_depth}", partial(iresnet, _depth))


def origin(name: str | None) -> str:
    """Digest of the plugin that a network is from; an empty text for all others, and for none."""
    return NETWORKS.origin(name or "")


def check_name(name: str) -> str:
    """The name by which `name` is listed: the same one, unless it is an alias.

    Raises `ConfigError`, with the nearest name, where no network is called `name`.
    """
    library, slash, inner = name.partition("/")
    if not slash:
        return NETWORKS.canonical(name)
    from raykd.models import libraries  # torchvision takes seconds to import

    libraries.check_name(library, inner)
    return name


def is_plain(name: str) -> bool:
    """True for a network of this table: convolutions and linear layers do its multiplications."""
    return "/" not in name and not origin(name)


def is_small(name: str, size: tuple[int, int]) -> bool:
    """True for a plain network that sees images of `size` (H, W) of few pixels.

    Running it on the CPU is faster than importing what torch's meta device needs.
    """
    return is_plain(name) and max(size) <= _SMALL


def build(name: str, classes: int, weights: str | None = None) -> Staged:
    """A network with `classes` outputs; with 0, a backbone without a classifier.

    Its parameters start from torch's global generator, or from the library's published
    `weights` (such as "IMAGENET1K_V2", or "DEFAULT"; timm: "DEFAULT" or a tag), whose
    classifier must have `classes` outputs. Raises `ConfigError` for weights that do not exist.
    """
    library, slash, inner = name.partition("/")
    if not slash:
        if weights is not None:
            raise ConfigError(
                f"{name} has no published weights {weights!r}; give a .safetensors or .pt file"
            )
        network = NETWORKS[name](classes or 1)
        return network if classes else without_classifier(network)
    from raykd.models import libraries

    return libraries.build(library, inner, classes, weights)
