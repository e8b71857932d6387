"""The table of networks: one line each. A name with a slash belongs to a library.

`build("resnet20", classes=10)` makes a network of this table, `build("torchvision/resnet18",
classes=10)` any classifier of torchvision, and `build("timm/...", classes=10)` any of timm
(`pip install raykd[timm]`).
"""

from collections.abc import Callable
from functools import partial

from raykd.errors import ConfigError
from raykd.models.resnet import WIDE, WIDTHS, resnet
from raykd.models.staged import Staged, measure, parameter_count
from raykd.registry import Registry

__all__ = ["NETWORKS", "Staged", "build", "check_name", "measure", "parameter_count"]

NETWORKS: Registry[Callable[..., Staged]] = Registry("network")
for _depth in (8, 14, 20, 32, 44, 56, 110):
    NETWORKS.add(f"resnet{_depth}", partial(resnet, _depth, WIDTHS))
for _depth in (8, 32):
    NETWORKS.add(f"resnet{_depth}x4", partial(resnet, _depth, WIDE))


def check_name(name: str) -> None:
    """Raise `ConfigError`, with the nearest name, where no network is called `name`."""
    library, slash, inner = name.partition("/")
    if not slash:
        NETWORKS[name]
        return
    from raykd.models import imagenet  # torchvision takes seconds to import

    imagenet.check_name(library, inner)


def build(name: str, classes: int, weights: str | None = None) -> Staged:
    """A network with `classes` outputs.

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
        return NETWORKS[name](classes)
    from raykd.models import imagenet

    return imagenet.build(library, inner, classes, weights)
