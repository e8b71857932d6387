"""WeightsConfig: the classes and the input that weights were trained with, as they say themselves.

A library says it of its published weights (`libraries.configuration`), a folder as the Hugging
Face Hub has them in its config.json (`of_folder`); a plain file says nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from raykd.core.errors import ConfigError
from raykd.models import foreign_checkpoints

Colour = tuple[float, float, float]  # red, green, blue
Names = tuple[tuple[str, ...], ...]  # for each class, all names that it has
_MOST = 1 << 20  # pixels or classes that a configuration may name


@dataclass(frozen=True)
class WeightsConfig:
    """Statements of weights about themselves; None and () where there are none."""

    names: Names = ()
    side: int | None = None  # pixels of the square that the network sees
    resize: int | None = None  # pixels of the shorter side before that is cut from the centre
    interpolation: str = ""  # method of that resizing
    mean: Colour | None = None  # pixels are in 0 to 1
    std: Colour | None = None


def of_folder(path: Path) -> WeightsConfig:
    """The configuration in a folder's config.json, in timm's words or those of transformers.

    `path` may be that file itself.
    """
    config = foreign_checkpoints.configuration(path)
    mean, std = (_colour(config.get(key)) for key in ("mean", "std"))
    if not mean or not std or min(std) <= 0:
        mean = std = None
    shape, share = config.get("input_size"), config.get("crop_pct")
    sides = shape[1:] if isinstance(shape, list) and len(shape) == 3 else []
    side = min(sides) if sides and all(type(n) is int and 0 < n < _MOST for n in sides) else None
    resize = side
    if side is not None and isinstance(share, int | float) and 0.1 < share <= 1:
        resize = shorter_side(side, share)
    return WeightsConfig(
        names_in(config),
        side,
        resize,
        str(config.get("interpolation") or "")[:20],
        mean,
        std,
    )


def shorter_side(side: int, crop_pct: float) -> int:
    """Pixels of the shorter side from which `side` are the share `crop_pct`, as timm rounds it."""
    return max(side, math.floor(side / crop_pct))


def of_words(words: Sequence[str]) -> Names:
    """The names of classes that are listed as "tench, Tinca tinca"."""
    return tuple(tuple(name.strip() for name in word.split(",")) for word in words)


def synsets(classes: int) -> tuple[str, ...]:
    """The WordNet ids of ImageNet's classes, in the order of networks that have so many outputs.

    1,000 are those of the challenge; timm knows larger sets by their numbers. Raises `ConfigError`
    for a number that is none of these, or without timm.
    """
    ids = _imagenet(classes)
    if ids is None:
        raise ConfigError(
            f"no list of ImageNet's classes has {classes}; the usual one has 1,000. Give a list of "
            "indices, or {class: index}"
        )
    return tuple(ids.label_names())


def lemmas(classes: int) -> Names:
    """The names of ImageNet's classes as `synsets` orders them; () for another number."""
    ids = _imagenet(classes)
    return of_words(ids.label_descriptions()) if ids is not None else ()


def _imagenet(classes: int) -> Any:
    """timm's description of the set of ImageNet's classes of that number; None without one."""
    try:
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
    except ImportError:
        raise ConfigError(
            "the WordNet ids of ImageNet's classes are in timm, which is not installed; "
            "`pip install '.[timm]'` in raykd's folder, or give a list of indices"
        ) from None
    subset = infer_imagenet_subset({"num_classes": classes})
    return None if subset is None else ImageNetInfo(subset)


def names_in(config: Mapping[str, Any]) -> Names:
    """The names of classes in a configuration; () where it has none that can be read."""
    labels, more = config.get("label_names"), config.get("label_descriptions")
    if labels is None and isinstance(config.get("id2label"), dict):
        labels = [config["id2label"].get(str(number)) for number in range(len(config["id2label"]))]
        return of_words(labels) if _are_texts(labels) else ()
    if not _are_texts(labels):
        return ()
    if isinstance(more, dict):
        more = [more.get(label) for label in labels]
    if not _are_texts(more) or len(more) != len(labels):
        return tuple((label,) for label in labels)
    return tuple((label, *names) for label, names in zip(labels, of_words(more), strict=True))


def _are_texts(value: Any) -> TypeGuard[Sequence[str]]:
    return (
        isinstance(value, list | tuple) and 0 < len(value) < _MOST and {*map(type, value)} == {str}
    )


def _colour(value: object) -> Colour | None:
    """Three numbers of a JSON file; None for anything else."""
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(isinstance(number, int | float) and abs(number) < 1e3 for number in value):
        return None
    red, green, blue = map(float, value)
    return red, green, blue
